"""What has become worse between two result files or folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..apnb.figure2 import TABLE as FIGURE2
from ..camvid.grids import PART as CAMVID
from ..static import compare as static
from .grid import Grid, number
from .load import Results
from .records import Row

# Quantities of a row, each with the growth below which it is noise whatever the ratio.
QUANTITIES = {
    "p50": ("ms", 0.002),
    "graph_p50": ("ms, graph", 0.002),
    "memory_above_inputs": ("MiB above the inputs", 1.0),
    "peak_mib": ("MiB, peak", 8.0),
}
FORCED = ("auto", "reference")  # backends that tell rows of one name apart
MOST = 40  # names that are listed of rows in only one of the two


@dataclass(frozen=True)
class Change:
    """A quantity that both have."""

    what: str
    quantity: str
    before: float
    after: float
    least: float

    @property
    def ratio(self) -> float:
        return self.after / self.before if self.before else float("inf")

    def is_worse(self, threshold: float) -> bool:
        return self.after - self.before > self.least and self.ratio > threshold


@dataclass
class Comparison:
    """Two results, row by row."""

    threshold: float
    changes: list[Change] = field(default_factory=list)
    static: list[str] = field(default_factory=list)  # regressions of the static estimates
    estimates: int = 0  # static rows that both have
    only_before: list[str] = field(default_factory=list)
    only_after: list[str] = field(default_factory=list)
    hardware: tuple[list[str], list[str]] = ((), ())

    @property
    def regressions(self) -> list[Change]:
        worse = [change for change in self.changes if change.is_worse(self.threshold)]
        return sorted(worse, key=lambda change: -change.ratio)

    @property
    def status(self) -> int:
        """1: something is worse; 2: nothing is in both; else 0."""
        if not self.changes and not self.estimates:
            return 2
        return int(bool(self.regressions or self.static))


Values = dict[str, dict[str, float]]  # what -> quantity -> value


def _name(row: Row) -> str:
    options = [f"{name} {value}" for name, value in row.options]
    backend = f"on {row.backend}" if row.backend in FORCED else ""
    malloc = f"glibc {row.malloc}" if row.malloc else ""
    facts = ["x".join(map(str, row.shape)), *options, row.dtype, row.layout, row.direction]
    return " | ".join(filter(None, [row.table, row.name, backend, *facts, malloc]))


def _values(results: Results) -> Values:
    found: Values = {}
    for row in sorted(results.rows, key=lambda row: row.date):  # the latest of equal ones stays
        values = {name: getattr(row, name) for name in QUANTITIES}
        found[_name(row)] = {name: value for name, value in values.items() if value is not None}
    for what, values in _parts(results):
        found[what] = values
    return {what: values for what, values in found.items() if values}


def _parts(results: Results) -> Iterator[tuple[str, dict[str, float]]]:
    for part in results.parts(CAMVID):
        for row in part["costs"]:
            values = {name: row[name] for name in ("p50", "peak_mib") if row.get(name)}
            facts = (CAMVID, row["network"], row["heads"], f"glibc {row['malloc']}")
            yield " | ".join(facts), values
    for part in results.parts(FIGURE2):
        for key, found in part.items():
            for block, times in found["blocks"].items():
                yield f"{FIGURE2} | {key} | {block}", {"p50": times["total"]}


def _hardware(results: Results) -> list[str]:
    return sorted({row.hardware for row in results.rows if row.p50})


def compare(before: Results, after: Results, threshold: float) -> Comparison:
    """Everything that both hold, and what only one of them does."""
    old, new = _values(before), _values(after)
    found = Comparison(threshold, hardware=(_hardware(before), _hardware(after)))
    for what in (what for what in old if what in new):
        for name, (unit, least) in QUANTITIES.items():
            if name in old[what] and name in new[what]:
                pair = old[what][name], new[what][name]
                found.changes.append(Change(what, unit, *pair, least))
    found.only_before = [what for what in old if what not in new]
    found.only_after = [what for what in new if what not in old]
    _compare_static(found, _static(before), _static(after), threshold)
    return found


def _static(results: Results) -> dict[str, Any]:
    return {"rows": results.static_rows}


def _compare_static(
    found: Comparison, before: dict[str, Any], after: dict[str, Any], threshold: float
) -> None:
    old, new = static.keyed(before), static.keyed(after)
    found.static = static.regressions(before, after, threshold)
    found.estimates = len(old.keys() & new.keys())
    for here, there, names in ((old, new, found.only_before), (new, old, found.only_after)):
        names += [f"static | {static.words(row)}" for key, row in here.items() if key not in there]


def grid(found: Comparison) -> Grid:
    """The regressions as a table; the notes hold everything else."""
    cells = [
        (
            change.what,
            change.quantity,
            number(change.before),
            number(change.after),
            f"{change.ratio:.2f}",
        )
        for change in found.regressions
    ]
    better = sum(change.ratio < 1 / found.threshold for change in found.changes)
    notes = [
        f"{len(found.changes)} figures and {found.estimates} static estimates are in both; "
        f"{len(cells) + len(found.static)} are more than {found.threshold:g} times as large in "
        f"the second, {better} figures less than {1 / found.threshold:.2f} times.",
        *(f"static estimate, not measured: {line}" for line in found.static),
        *_hardware_note(*found.hardware),
        *_listed("only in the first", found.only_before),
        *_listed("only in the second", found.only_after),
    ]
    header = ("row", "quantity", "first", "second", "second / first")
    return Grid("Regressions", header, cells, notes)


def _hardware_note(first: Sequence[str], second: Sequence[str]) -> list[str]:
    if list(first) == list(second):
        return []
    pair = (", ".join(devices) or "none" for devices in (first, second))
    return ["DIFFERENT HARDWARE, so that times say little: {} against {}".format(*pair)]


def _listed(title: str, names: Sequence[str]) -> list[str]:
    lines = [f"{title}: {name}" for name in names[:MOST]]
    return lines + ([f"{title}: {len(names) - MOST} more"] if len(names) > MOST else [])
