"""Tables of the curves: exponents, and every point."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..report.grid import Grid, number
from ..report.records import Row
from .fit import exponent, last
from .sweeps import SWEEPS, TABLE

LABELS = {sweep.name: sweep.label for sweep in SWEEPS}


@dataclass(frozen=True)
class Curve:
    """One contender of a sweep, its points in order."""

    sweep: str
    name: str
    malloc: str
    rows: list[Row]

    @property
    def x(self) -> list[int]:
        return [dict(row.options)["value"] for row in self.rows]

    @property
    def ms(self) -> list[float | None]:
        return [row.p50 for row in self.rows]

    @property
    def mib(self) -> list[float | None]:
        """Memory beyond input and output."""
        return [row.memory_above_inputs_and_output for row in self.rows]

    @property
    def label(self) -> str:
        return LABELS.get(self.sweep, self.sweep)

    @property
    def title(self) -> str:
        return f"{self.name}, memory {self.malloc}" if self.malloc else self.name


def curves(rows: Iterable[Row]) -> list[Curve]:
    found: dict[tuple[str, str, str], Curve] = {}
    for row in rows:
        if row.table == TABLE:
            key = (dict(row.options)["sweep"], row.name, row.malloc)
            found.setdefault(key, Curve(*key, [])).rows.append(row)
    for curve in found.values():
        curve.rows.sort(key=lambda row: dict(row.options)["value"])
    return list(found.values())


def grids(rows: Iterable[Row]) -> Iterator[Grid]:
    """Exponents, then the points of every sweep."""
    found = curves(rows)
    where = found[0].rows[0].hardware if found else ""
    yield _exponents(found, where)
    for sweep in dict.fromkeys(curve.sweep for curve in found):
        yield _points([curve for curve in found if curve.sweep == sweep])


def _exponents(found: list[Curve], where: str) -> Grid:
    header = ("against", "who", "points", "time", "time, larger half", "memory")
    header += ("memory, larger half",)
    grid = Grid(f"Exponents, float32, forward: {where}", header)
    for curve in found:
        pairs = [_fits(curve.x, values) for values in (curve.ms, curve.mib)]
        points = sum(value is not None for value in curve.ms)
        cells = [text for pair in pairs for text in pair]
        grid.cells.append((curve.label, curve.title, str(points), *cells))
    grid.notes = [
        "p of the c·x^p that fits best by least squares of the logarithms; memory: beyond input "
        "and output. Constant and linear parts pull the whole curve's exponent down: the larger "
        "half of the points shows the leading term.",
    ]
    return grid


def _fits(x: list[int], y: list[float | None]) -> tuple[str, str]:
    """Exponents of all points and of the larger half."""
    known = [(a, b) for a, b in zip(x, y, strict=True) if b]
    halves = (known, last(known))
    found = [exponent([a for a, _ in half], [b for _, b in half]) for half in halves]
    return tuple("" if value is None else f"{value:.2f}" for value in found)


def _points(found: list[Curve]) -> Grid:
    values = sorted({value for curve in found for value in curve.x})
    grid = Grid(f"ms (MiB) against {found[0].label}", ["who", *map(str, values)])
    notes = {}
    for curve in found:
        at = dict(zip(curve.x, curve.rows, strict=True))
        grid.cells.append([curve.title, *(_cell(at.get(value)) for value in values)])
        notes |= {f"{curve.title}: {row.note}": None for row in curve.rows if row.note}
    grid.notes = list(notes)
    return grid


def _cell(row: Row | None) -> str:
    if row is None or row.p50 is None:
        return "-"
    memory = row.memory_above_inputs_and_output
    return number(row.p50) if memory is None else f"{number(row.p50)} ({number(memory)})"
