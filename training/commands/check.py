"""`attnops check DATA`: what a data set holds, and every fault of it at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from ..data.check import CheckReport, SplitReport, check_data
from .data_options import add_data_options, open_from

SIZES = 4  # shown of a split


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "attnops check",
        description="Read every file of a data set: how many there are, how often each class "
        "occurs, and what is missing, damaged, mis-sized or labelled with unknown numbers.",
    )
    parser.add_argument("data", metavar="DATA", help="folder of the data set, or `shapes`")
    parser.add_argument(
        "--split", action="append", metavar="NAME", help="only this split (may be repeated)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N of every split")
    parser.add_argument(
        "--no-cache", action="store_true", help="read files again that have not changed"
    )
    add_data_options(parser)
    chosen = parser.parse_args(arguments)
    try:
        data = open_from(chosen, chosen.data)
        report = check_data(data, chosen.split, chosen.limit, cached=not chosen.no_cache)
    except ValueError as error:
        print(f"attnops check: {error}", file=sys.stderr)
        return 1
    show(report, Console(soft_wrap=True))
    faults = report.faults
    for fault in faults:
        print(f"{fault.kind}: {fault.text}", file=sys.stderr)
    print(f"{len(faults)} faults" if faults else "no faults", file=sys.stderr if faults else None)
    return 1 if faults else 0


def show(report: CheckReport, console: Console) -> None:
    """Counts and sizes of each split, then how often each class occurs."""
    counts = Table("split", box=box.SIMPLE_HEAD, title=report.info.name, title_justify="left")
    for column in ("pairs", "faults", "sizes"):
        counts.add_column(column, justify="left" if column == "sizes" else "right")
    for name, split in report.splits.items():
        counts.add_row(name, str(split.samples), str(len(split.faults)), _sizes(split))
    console.print(counts)
    classes = Table("", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    classes.add_column("class", no_wrap=True)
    for name in report.splits:
        classes.add_column(f"{name}: pixels", justify="right", no_wrap=True)
        classes.add_column("images", justify="right", no_wrap=True)
    for index, name in enumerate([*report.info.classes, "(no class)"]):
        shares = [cell for split in report.splits.values() for cell in _shares(split, index)]
        classes.add_row(str(index) if index < report.info.num_classes else "", name, *shares)
    console.print(classes)


def _sizes(split: SplitReport) -> str:
    shown = [f"{size} ({count})" for size, count in list(split.sizes.items())[:SIZES]]
    more = len(split.sizes) - SIZES
    return ", ".join(shown) + (f", and {more} more" if more > 0 else "")


def _shares(split: SplitReport, index: int) -> tuple[str, str]:
    share = split.pixels[index] / max(1, sum(split.pixels))
    return f"{share:.2%}", str(split.images[index])
