"""One report of everything that the bench commands wrote, beside the papers' figures.

    python -m attnops.benchmarks report [--results DIR] [--run-missing] --out DIR
    python -m attnops.benchmarks report --compare A B [--threshold 1.10]

The first writes report.md and its pictures. The second names what became worse from one result
file or folder to another: exit status 1 if something did, 2 if they have nothing in common.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..static.compare import THRESHOLD
from .compare import compare, grid
from .grid import show
from .load import Results, load
from .records import RESULTS, write_whole


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("attnops bench report", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="DIR", help="of report.md and its pictures")
    parser.add_argument(
        "--run-missing", action="store_true", help="first run what is not among the results"
    )
    parser.add_argument("--fresh", action="store_true", help="with --run-missing: run it all")
    parser.add_argument(
        "--budget", type=float, default=2400, metavar="SECONDS", help="for --run-missing"
    )
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="what is worse")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="B / A, from which on")
    chosen = parser.parse_args(arguments)
    if chosen.compare:
        return _compare(*chosen.compare, chosen.threshold)
    if chosen.out is None:
        parser.error("expected --out DIR or --compare A B")
    from . import wanted  # matplotlib is needed from here on
    from .sections import as_markdown

    results, failed = _load(chosen.results), []
    if chosen.run_missing:
        todo = list(wanted.WANTED) if chosen.fresh else wanted.missing(results)
        failed = wanted.run(todo, chosen.results, chosen.budget)
        results = _load(chosen.results)
    if not results.documents and not results.static:
        print(f"attnops bench report: no result files under {chosen.results}", file=sys.stderr)
        return 1
    notes = [f"{entry.name}: {_how(entry)}" for entry in wanted.missing(results)]
    text = as_markdown(results, chosen.out, [*notes, *failed])
    write_whole(chosen.out / "report.md", text)
    print(chosen.out / "report.md")
    return 0


def _how(entry: object) -> str:
    if not entry.command:
        return entry.about
    return f"{entry.about} (`{entry.line} --json FILE`, about {entry.minutes:g} min on two cores)"


def _load(path: Path) -> Results:
    results = load(path)
    for line in results.left_out:
        print(f"attnops bench report: {line}", file=sys.stderr)
    return results


def _compare(before: Path, after: Path, threshold: float) -> int:
    for path in (before, after):
        if not path.exists():
            print(f"attnops bench report: no file or folder {path}", file=sys.stderr)
            return 2
    found = compare(_load(before), _load(after), threshold)
    show(grid(found))
    if found.status == 2:
        print("attnops bench report: the two have no figure in common", file=sys.stderr)
    return found.status
