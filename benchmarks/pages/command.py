"""Write docs/support.md, and the tables of figures in README.md and in the pages of the ops.

python -m attnops.benchmarks pages [--check]
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ..report.records import RESULTS, write_whole
from . import costs, first_screen, readme, support

DOCS = Path(__file__).resolve().parents[2] / "docs"
# What stands between the two comments is written by this command.
BLOCK = re.compile(r"(<!-- (\w+): written by `attnops bench pages` -->\n).*?(<!-- end -->)", re.S)


def pages(docs: Path = DOCS, results: Path = RESULTS) -> dict[Path, str]:
    """Every page with tables of this command, as it should be."""
    found = support.matrix(results)
    wanted = {docs / "support.md": support.page(found)}
    for op in support.CALLS:
        tables = {"support": support.table(found, [op]), "cost": costs.section(op, results)}
        path = docs / "ops" / f"{op}.md"
        wanted[path] = _filled(path, tables)
    path = docs.parent / "README.md"
    tables = readme.tables(list(support.CALLS), results) | first_screen.tables(results)
    wanted[path] = _filled(path, tables)
    return wanted


def _filled(path: Path, tables: dict[str, str]) -> str:
    """The text of a page with its tables."""
    text = path.read_text(encoding="utf-8")
    missing = set(tables) - {name for _, name, _ in BLOCK.findall(text)}
    if missing:
        raise ValueError(f"{path} has no place for: {', '.join(sorted(missing))}")
    return BLOCK.sub(lambda m: f"{m[1]}\n{tables[m[2]]}\n\n{m[3]}", text)


def is_current(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("attnops bench pages", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit status 1 if a page is not current"
    )
    chosen = parser.parse_args(arguments)
    if not DOCS.is_dir():
        print("attnops bench pages: works in a checkout, which has docs/", file=sys.stderr)
        return 1
    stale = {path: text for path, text in pages().items() if not is_current(path, text)}
    for path, text in stale.items():
        print(f"{path} is not current" if chosen.check else f"{path} written")
        if not chosen.check:
            write_whole(path, text)
    return int(chosen.check and bool(stale))
