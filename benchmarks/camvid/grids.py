"""Tables of the CamVid runs."""

from __future__ import annotations

from typing import Any

from ..measure.glibc import SETTINGS
from ..report.grid import Grid, number
from .plan import LONGER, RUNS, SAME_BUDGET

PART = "camvid"  # of a result document


def grids(part: dict[str, Any]) -> list[Grid]:
    """The same budget, the longer runs, the classes of these, and labels after deployment."""
    runs, costs = part["runs"], part["costs"]
    tables = (
        _same(runs, costs),
        _longer(runs),
        _classes(runs),
        _deployed(part.get("deployed", [])),
    )
    return [table for table in tables if table.cells]


def _same(runs: list[dict[str, Any]], costs: list[dict[str, Any]]) -> Grid:
    found = {(run["network"], run["heads"]): run for run in runs if run["part"] == SAME_BUDGET}
    step = {(row["network"], row["heads"], row["malloc"]): row for row in costs}
    names = dict.fromkeys(run.network.title for run in RUNS)
    cells = []
    for name in names:
        for heads in ("fast", "reference"):
            run = found.get((name, heads))
            default, kept = (step.get((name, heads, key), {}) for key in ("default", "kept"))
            if run is None and not default:
                continue
            ratios = [_ratio(step, name, key) if heads == "fast" else "" for key in SETTINGS]
            cells.append(
                (
                    name,
                    heads,
                    f"{run['miou']:.3f}" if run else "",
                    f"{run['accuracy']:.3f}" if run else "",
                    _seconds(default),
                    ratios[0],
                    _seconds(kept),
                    ratios[1],
                    number(default.get("peak_mib")),
                )
            )
    steps = next((run["steps"] for run in found.values()), "")
    header = ["network", "heads", "mIoU", "accuracy", "s/step", "x", "s/step, kept", "x", "MiB"]
    notes = [
        f"mIoU and accuracy on the test split after {steps} steps of 8 crops of 256x320, the same "
        "seed for both heads; Lite0 with ImageNet weights where they were given.",
        "s/step: forward, loss, backward and optimiser, medians of steps taken in turn; "
        "kept: glibc keeps freed memory (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ large). "
        "x: reference over fast. MiB: peak above the network's weights and the batch, as glibc "
        "is by default.",
    ]
    return Grid("Every family, the same budget", header, cells, notes)


def _seconds(row: dict[str, Any]) -> str:
    return number(row["p50"] / 1e3) if row else ""


def _ratio(step: dict[Any, dict[str, Any]], name: str, malloc: str) -> str:
    rows = [step.get((name, heads, malloc)) for heads in ("reference", "fast")]
    return f"{rows[0]['p50'] / rows[1]['p50']:.2f}" if all(rows) else ""


def _longer(runs: list[dict[str, Any]]) -> Grid:
    found = {run["name"]: run for run in runs if run["part"] == LONGER}
    cells = []
    for run in found.values():
        steps, before = [str(run["steps"])], found.get(run["begins"])
        while before is not None:
            steps.insert(0, str(before["steps"]))
            before = found.get(before["begins"])
        scales = run.get("miou_over_scales")
        scores = (f"{run['miou']:.3f}", f"{run['accuracy']:.3f}", _figure(scales))
        cells.append((run["network"], run["heads"], " + ".join(steps), *scores))
    notes = [
        "Whole test images. a + b: the schedule begins again after a steps. Over scales: mean of "
        "the probabilities at 1, 1.5 and 2 times the size, and mirrored.",
    ]
    header = ["network", "heads", "steps", "mIoU", "accuracy", "mIoU over scales"]
    return Grid("Longer", header, cells, notes)


def _classes(runs: list[dict[str, Any]]) -> Grid:
    longer = [run for run in runs if run["part"] == LONGER]
    names = list(longer[0]["iou"]) if longer else []
    cells = [(name, *(_figure(run["iou"][name]) for run in longer)) for name in names]
    header = ["class", *(f"{run['network']}, {run['name'].rpartition('_')[2]}" for run in longer)]
    return Grid("IoU of every class", header, cells)


def _deployed(rows: list[dict[str, Any]]) -> Grid:
    cells = [
        (
            row["network"],
            row["run"],
            row["dtype"],
            f"{100 * row['equal']:.3f} %",
            f"{row['logits_error']:.1e}",
            str(row["images"]),
        )
        for row in rows
    ]
    notes = [
        "`models.deploy`, compiled, against `predict` in float32 on images of the test split, with "
        "the trained weights. Logits: largest difference over the largest value.",
    ]
    header = ["network", "run", "precision", "equal labels", "logits differ", "images"]
    return Grid("Labels of deployed networks", header, cells, notes)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
