"""The demonstration: attention on a photograph, the paper's table and figure 2, then a training.

python -m attnops.benchmarks demo [--out demo] [--budget 100] [--training-seconds 110]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import attnops
from attnops import env

from ..apnb import figure2
from ..apnb.operations import Block
from ..apnb.run import Options, run, say
from ..apnb.table import report
from ..arguments import positive_integer
from ..measure.timing import Budget
from ..report.grid import show
from ..report.plots import plot_kinds
from ..report.records import Document
from . import attention as demo_attention


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("attnops bench demo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR")
    parser.add_argument("--budget", type=float, default=100, help="seconds for table and figure")
    parser.add_argument("--threads", type=positive_integer, help="CPU threads")
    parser.add_argument(
        "--training-seconds",
        type=float,
        default=110,
        metavar="S",
        help="of training with both kinds of heads together; 0: none",
    )
    parser.add_argument(
        "--pictures-only", action="store_true", help="no table, no figure 2, no training"
    )
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    chosen.out.mkdir(parents=True, exist_ok=True)
    print(env.as_text(env.environment()), flush=True)
    _photograph(chosen.out)
    if not chosen.pictures_only:
        _table(chosen.out, Budget(chosen.budget))
        if chosen.training_seconds > 0:
            _training(chosen.out, chosen.training_seconds)
    return 0


def _photograph(out: Path) -> None:
    photo = demo_attention.photograph()
    demo_attention.attend(photo)  # the first call loads code
    start = time.perf_counter()
    attention = demo_attention.attend(photo)
    elapsed = 1e3 * (time.perf_counter() - start)
    demo_attention.draw(attention, out / "attention.png")
    height, width = photo.shape[:2]
    backends = attnops.backends()["anchor_attention"]
    on = "C++" if backends["cpu"] else "the reference (no compiled library)"
    print(
        f"\nAttention of {height * width} pixels of a photograph to {attention.anchors} pyramid "
        f"anchors, and the data of its pictures, on {on}: {elapsed:.0f} ms\n"
        f"  {out / 'attention.png'}: where marked pixels attend, and every pixel rebuilt from "
        "anchor colours\n",
        flush=True,
    )


def _table(out: Path, budget: Budget) -> None:
    """Both sizes of the paper on the CPU, the larger as far as time allows."""
    say(f"The APNB table, in at most about {budget.left():.0f} s:")
    document = Document()
    options = Options(sizes=((96, 96),), seconds=1.5, compiled_memory=False)
    run(document, options, budget)
    figure_block = Block(96, 96)
    found = figure2.measure(
        document,
        figure_block,
        options.device,
        torch.float32,
        repeats=2,
        leave_out=[] if budget.left() > 15 else [figure2.EAGER_NON_LOCAL],
    )
    plot_kinds(found, out / "figure2.png")
    run(document, replace(options, sizes=((256, 128),), compile_modes=()), budget)
    table = out / "apnb_table"
    report(document, f"{table}.json", f"{table}.md", f"{table}.png")
    show(figure2.grid(found))
    print(f"{out}/: attention.png, apnb_table.json, apnb_table.md, apnb_table.png, figure2.png")


def _training(out: Path, seconds: float) -> None:
    """The training, where what it needs is installed."""
    try:
        from . import training
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "attnops":
            raise
        print(f'No training: {missing} is not installed (pip install "attnops[train]")')
        return
    training.run(out, seconds)
