"""Grids of text: as Markdown for files, and for a terminal through rich where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Grid:
    """A titled table of cells; the first column is left-aligned, the others right-aligned."""

    title: str
    header: Sequence[str]
    cells: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def without_empty_columns(self) -> Grid:
        kept = [i for i in range(len(self.header)) if any(row[i] for row in self.cells)]
        cells = [[row[i] for i in kept] for row in self.cells]
        return Grid(self.title, [self.header[i] for i in kept], cells, self.notes)


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, without an exponent; nothing for None."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text or abs(value) >= 10**digits else text


def markdown(grid: Grid, level: int = 2) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---"] + ["---:"] * (len(grid.header) - 1)
    lines = [f"{'#' * level} {grid.title}", "", line(grid.header), line(rule)]
    lines += [line(row) for row in grid.cells]
    if grid.notes:
        lines += ["", *(f"- {note}" for note in grid.notes)]
    return "\n".join(lines) + "\n"


def show(grid: Grid) -> None:
    """Print a grid."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ModuleNotFoundError:
        print(_plain(grid))
        return
    table = Table(title=Text(grid.title, "bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for index, name in enumerate(grid.header):
        table.add_column(Text(name), justify="right" if index else "left", no_wrap=True)
    for row in grid.cells:
        table.add_row(*map(Text, row))
    console = Console(width=Console(width=1000).measure(table).maximum)
    console.print(table)
    for note in grid.notes:
        console.print(Text(f"  {note}"))


def _plain(grid: Grid) -> str:
    rows = [grid.header, *grid.cells]
    widths = [max(len(row[i]) for row in rows) for i in range(len(grid.header))]
    lines = [grid.title]
    for row in rows:
        first, *others = (cell for cell in row)
        aligned = [first.ljust(widths[0])]
        aligned += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(aligned))
    return "\n".join([*lines, *(f"  {note}" for note in grid.notes)])
