"""What no kernel may fall back to: spills, narrow accesses, idle multiprocessors, more launches.

`breaches` judges rows of the static report; `faults` compares them with the table of known
exceptions (`limits`), in both directions: a breach that the table does not name is a fault, and so
is a line of the table that nothing breaks any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..ops.cases import case_of
from .inputs import VARIANTS, is_aligned
from .limits import ATEN, EXCEPTIONS, LAUNCHES, Exempt

MULTIPROCESSORS = 132
WIDE = 0.9  # of the bytes: a kernel may read a bias or a row's statistic besides


@dataclass(frozen=True)
class Breach:
    """One rule that one launch, or one pass, breaks on one input.

    Attributes:
        where: the kernel, or the pass for rules of passes.
        found: how many launches, programs or spills; None for access widths.
    """

    op: str
    rule: str
    where: str
    layout: str
    shape: tuple[int, ...]
    what: str
    found: int | None = None

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{self.op} {size} {self.layout}: {self.where}: {self.what}"


def breaches(row: Mapping[str, Any]) -> Iterator[Breach]:
    """What one row breaks. Launches that were not compiled are judged by their programs alone.

    CUDA kernels are judged by their spills: limits and exceptions describe Triton's.
    """
    op, shape = row["op"], tuple(row["shape"])

    def breach(rule: str, where: str, what: str, found: int | None = None) -> Breach:
        return Breach(op, rule, where, row["layout"], shape, what, found)

    for kernel in row["kernels"]:
        if kernel.get("spills"):
            what = f"{kernel['spills']} accesses of local memory, expected none"
            yield breach("spills", kernel["kernel"], what, kernel["spills"])
    if row.get("backend") == "cuda":
        return
    counts = {"launches": len(row["kernels"]), "aten": len(row["aten"])}
    limits = {"launches": LAUNCHES[op], "aten": ATEN.get(op, {})}
    for rule, count in counts.items():
        most = limits[rule].get(row["pass"], 0)
        if count > most:
            yield breach(rule, row["pass"], f"{count} {rule}, expected at most {most}", count)
    wide = row["dtype"] != "float32" and is_aligned(
        case_of(op, {**row, "direction": "forward+backward"})
    )
    for kernel in row["kernels"]:
        name = kernel["kernel"]
        if kernel["programs"] < MULTIPROCESSORS:
            what = f"{kernel['programs']} programs, expected at least {MULTIPROCESSORS}"
            yield breach("programs", name, what, kernel["programs"])
        for rule in ("loads", "stores"):
            share = kernel.get(f"wide_{rule}", 1.0)
            if wide and share < WIDE:
                yield breach(rule, name, f"{share:.0%} of {rule} in 128 bits, expected {WIDE:.0%}")


def allows(entry: Exempt, breach: Breach) -> bool:
    """Whether a line of the table stands for the breach."""
    if entry.most is not None and (breach.found or 0) > entry.most:
        return False
    return (
        (entry.rule, entry.where) == (breach.rule, breach.where)
        and entry.layout in (None, breach.layout)
        and entry.shape in (None, breach.shape)
    )


def _needed(entry: Exempt, found: Sequence[Breach]) -> bool:
    """Whether something breaks the rule as far as the line says."""
    allowed = [breach for breach in found if allows(entry, breach)]
    if entry.most is None:
        return bool(allowed)
    return any(breach.found == entry.most for breach in allowed)


def _judged(entry: Exempt, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the rows show all that the line may stand for."""
    if entry.rule in ("launches", "aten"):
        return True
    if entry.rule == "programs":  # a kernel of one dtype is not in the rows of another
        return any(kernel["kernel"] == entry.where for row in rows for kernel in row["kernels"])
    shown = [
        row["layout"]
        for row in rows
        for kernel in row["kernels"]
        if kernel["kernel"] == entry.where and "spills" in kernel
        if entry.shape in (None, tuple(row["shape"]))
    ]
    return entry.layout in shown if entry.layout else bool(shown)


def faults(
    rows: Iterable[Mapping[str, Any]],
    exceptions: Mapping[str, Sequence[Exempt]] = EXCEPTIONS,
    whole: bool = True,
) -> list[str]:
    """Breaches that no exception allows, and exceptions that nothing needs.

    Args:
        rows: of the static report, all inputs of an op or none.
        exceptions: op -> its lines.
        whole: every row is compiled; else lines on access widths and spills are held needed unless
            their kernel was compiled.
    """
    of_op: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        of_op.setdefault(row["op"], []).append(row)
    lines = []
    for op, own in of_op.items():
        found = [breach for row in own for breach in breaches(row)]
        entries = exceptions.get(op, ())
        lines += dict.fromkeys(
            str(breach) for breach in found if not any(allows(e, breach) for e in entries)
        )
        for entry in entries:
            if not _needed(entry, found) and (whole or _judged(entry, own)):
                lines.append(
                    f"{op}: no longer needed, remove or lower it in benchmarks/static/limits.py: "
                    f"{entry}"
                )
    lines += [f"{op}: exceptions for an unknown op" for op in exceptions if op not in VARIANTS]
    return lines
