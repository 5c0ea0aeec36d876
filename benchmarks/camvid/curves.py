"""The curves of the runs as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot

from ..report.plots import EAGER, OURS, STYLE, save
from .plan import LONGER, SAME_BUDGET

COLUMNS = 4
_COLOURS = {"fast": OURS, "reference": EAGER}


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """A panel a network: loss with both kinds of heads; then mIoU in the longer runs."""
    same = [run for run in runs if run["part"] == SAME_BUDGET]
    networks = list(dict.fromkeys(run["network"] for run in same))
    longer = [run for run in runs if run["part"] == LONGER and run["val_miou"]]
    count = len(networks) + bool(longer)
    if not count:
        return
    rows = -(-count // COLUMNS)
    with pyplot.rc_context(STYLE):
        figure, panels = pyplot.subplots(
            rows, COLUMNS, figsize=(3.1 * COLUMNS, 2.6 * rows), squeeze=False, layout="constrained"
        )
        for axes in panels.flat[count:]:
            axes.axis("off")
        for axes, network in zip(panels.flat, networks, strict=False):
            for run in (run for run in same if run["network"] == network):
                dashes = {"fast": "-", "reference": (0, (3, 2))}[run["heads"]]
                steps, loss = zip(*run["loss"], strict=True)
                axes.plot(steps, loss, color=_COLOURS[run["heads"]], ls=dashes, label=run["heads"])
            axes.set_title(network, loc="left")
            axes.set_xlabel("step")
            axes.set_ylabel("training loss")
            axes.legend(frameon=False)
        if longer:
            axes = panels.flat[len(networks)]
            for run in longer:
                axes.plot(*zip(*run["val_miou"], strict=True), marker="o", label=run["name"])
            axes.set_title("mIoU on the validation split", loc="left")
            axes.set_xlabel("step")
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.02, 1))
        save(figure, path)
