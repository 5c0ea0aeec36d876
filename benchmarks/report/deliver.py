"""Where a table goes: to the terminal, and to the files that the user names."""

from __future__ import annotations

import argparse

from .grid import Grid, markdown, show
from .records import Document, write_whole


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--markdown", metavar="FILE")


def deliver(document: Document, grid: Grid, chosen: argparse.Namespace) -> None:
    """Show the grid of a document and write the files that `chosen` asks for."""
    show(grid)
    if chosen.json:
        document.save(chosen.json)
    if chosen.markdown:
        write_whole(chosen.markdown, markdown(grid))
