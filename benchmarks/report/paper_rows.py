"""What was measured or counted here for every figure that the papers print."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .. import gald_table, paper_networks, papers
from ..apnb import operations
from ..apnb.cases import (
    EAGER_LINEAR,
    EAGER_NON_LOCAL,
    OURS_LINEAR,
    OURS_RELEASED,
    SDPA_NON_LOCAL,
)
from ..apnb.operations import Block
from ..apnb.run import TABLE as APNB
from ..costs import table as costs
from ..costs.cases import Case, cases
from ..papers import ADDED, GMAC, MEGABYTES, MILLION, MS, SECONDS, Table
from ..static import words as static
from .load import Results
from .records import Row

NOT_MEASURED = "not measured here"
GPU = "GPU"
STATIC = "static estimate, not measured"


@dataclass(frozen=True)
class Here:
    """One answer to a figure, in the figure's unit; `value` None: there is none, `note` says why.

    `floor` is the least that the device allows, `percent` the value's share of it.
    """

    who: str
    value: float | None
    where: str
    floor: float | None = None
    percent: float | None = None
    note: str = ""


Finder = Callable[[Results, str, str], Iterable[Here]]  # of a table: row and quantity


def found(results: Results, table: Table, row: str, quantity: str) -> list[Here]:
    """Everything known here about a figure: at least a line, one for the GPU if it needs one."""
    lines = list(FINDERS.get(table, _costs_of(table))(results, row, quantity))
    if quantity not in papers.NEEDS_HARDWARE:
        return lines or [Here("", None, "", note="not among the options of the networks here")]
    on_gpu = any(line.where.startswith(GPU) for line in lines)
    if not any(line.value is not None and not line.where.startswith(GPU) for line in lines):
        lines.append(Here("", None, "CPU", note=NOT_MEASURED))
    if not on_gpu:
        estimate = _estimates(results, table, row) if quantity == MS else ""
        note = f"needs a GPU; {estimate}" if estimate else "needs a GPU"
        lines.append(Here("", None, GPU, note=note))
    return lines


def _where(row: Row) -> str:
    """The hardware and whatever else tells rows of one contender apart."""
    device = f"{GPU}, {row.device}, {row.dtype}" if row.on_gpu else row.hardware
    return f"{device}, memory {row.malloc}" if row.malloc else device


def _timed(row: Row, scale: float = 1.0, note: str = "") -> Here:
    floor = None if row.floor_ms is None else scale * row.floor_ms
    value = None if row.p50 is None else scale * row.p50
    return Here(_who(row), value, _where(row), floor, row.floor_percent, note or row.note)


def _who(row: Row) -> str:
    plain = row.backend == "reference" and row.name != row.backend
    return f"{row.name}, reference" if plain else row.name


def _remembered(row: Row) -> Here:
    return Here(_who(row), row.memory_above_inputs_and_output, _where(row))


def _best(rows: Iterable[Row]) -> list[Row]:
    """The fastest layout (and run) of every contender on every device."""
    best: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = (row.name, row.backend in ("reference",), _where(row))
        if row.p50 and (key not in best or row.p50 < best[key].p50):
            best[key] = row
    return list(best.values())


def _block_rows(results: Results, name: str) -> tuple[list[Row], Block]:
    kind, size = name.split()
    height, width = map(int, size.split("x"))
    chosen = (EAGER_NON_LOCAL, SDPA_NON_LOCAL)
    if kind == operations.NAMES["apnb"]:
        chosen = (OURS_LINEAR, OURS_RELEASED, EAGER_LINEAR)
    block = Block(height, width)
    rows = [
        row
        for row in results.of(APNB)
        if row.name in chosen and row.shape == block.shape and row.direction == "forward"
    ]
    return rows, block


def _ann_1(results: Results, name: str, quantity: str) -> Iterator[Here]:
    rows, block = _block_rows(results, name)
    if quantity == MS:
        yield from map(_timed, _best(rows))
    elif quantity == MEGABYTES:
        yield from map(_remembered, _best(row for row in rows if row.memory_method))
    elif name.startswith("NB"):
        yield Here("by the paper's rule", operations.non_local_macs(block) / 1e9, papers.COUNTED)
    else:
        yield Here("by the paper's rule", operations.apnb_macs(block) / 1e9, papers.COUNTED)
        for form, who in (("linear", OURS_LINEAR), ("released", OURS_RELEASED)):
            done = operations.folded_apnb_macs(block, form) / 1e9
            yield Here(who, done, papers.COUNTED, note="executed, with projections moved")


def _ann_claim(results: Results, name: str, quantity: str) -> Iterator[Here]:
    def value(row: Row) -> float | None:
        return row.p50 if name == "less time" else row.memory_above_inputs_and_output

    slow, _ = _block_rows(results, "NB 256x128")
    fast, _ = _block_rows(results, "APNB 256x128")
    slow, fast = (_best(row for row in rows if value(row)) for rows in (slow, fast))
    whole = {_where(row): value(row) for row in slow if row.name == EAGER_NON_LOCAL}
    for row in fast:
        other = whole.get(_where(row))
        if other:
            yield Here(f"{row.name} against {EAGER_NON_LOCAL}", other / value(row), _where(row))


def _network(results: Results, title: str) -> list[Row]:
    rows = [r for r in results.of(paper_networks.TABLE) if dict(r.options)["case"] == title]
    return _best(rows)


def _ann_2(results: Results, name: str, quantity: str) -> Iterator[Here]:
    if quantity == MILLION:
        yield from _costs_of(papers.ANN_2)(results, name, quantity)
    for row in _network(results, paper_networks.ANN):
        if quantity == SECONDS:
            yield _timed(row, 1e-3)
        elif quantity == MEGABYTES and row.memory_method:
            yield Here(_who(row), row.memory_above_inputs, _where(row), note=row.note)


def _gald_4(results: Results, name: str, quantity: str) -> Iterator[Here]:
    rows = {(row.name, row.backend): row for row in results.of(gald_table.TABLE)}
    heads = [row for (head, _), row in rows.items() if head == name]
    if quantity == MS:
        for row in heads:
            who = "reference" if row.backend == "reference" else "attnops"
            yield Here(f"{who}, head alone", row.p50, _where(row))
        for row in _network(results, paper_networks.GALD.get(name, "")):
            yield _timed(row, note="whole network")
        return
    parameters = {row.name: dict(row.options)["parameters_million"] for row in rows.values()}
    if name in parameters:
        before = parameters["+ ASPP"] if quantity == ADDED else 0.0
        yield Here("head alone", parameters[name] - before, papers.COUNTED)


def _segnext_11(results: Results, name: str, quantity: str) -> Iterator[Here]:
    for row in _network(results, paper_networks.SEGNEXT):
        least = 1e3 / row.floor_ms if row.floor_ms else None
        yield Here(_who(row), 1e3 / row.p50, _where(row), least, row.floor_percent, row.note)


def _scales(results: Results, name: str, quantity: str) -> Iterator[Here]:
    if quantity == MS:
        yield from map(_timed, _network(results, paper_networks.SCALES_PREDICT))
        return
    one = {(r.name, _where(r)): r.p50 for r in _network(results, paper_networks.ONE_SCALE)}
    for row in _network(results, paper_networks.THREE_SCALES):
        single = one.get((row.name, _where(row)))
        if single:
            yield Here(row.name, row.p50 / single, _where(row))


def _costs_of(table: Table) -> Finder:
    """Counted networks, by the cases that say where a paper prints them."""

    def find(results: Results, name: str, quantity: str) -> Iterator[Here]:
        wanted = [case for case in cases() if (table, name) in case.printed]
        for row in results.of(costs.TABLE):
            if any(_is_of(row, case) for case in wanted):
                counts = {MILLION: dict(row.options)["parameters"] / 1e6, GMAC: row.gmac}
                yield Here(row.name, counts[quantity], papers.COUNTED)
                if quantity == GMAC and row.gmac_done != row.gmac:
                    yield Here(row.name, row.gmac_done, papers.COUNTED, note="executed")

    return find


def _is_of(row: Row, case: Case) -> bool:
    words = dict(row.options)["words"]
    return (row.name, words, row.shape[2:]) == (case.network, case.words, list(case.size))


def _estimates(results: Results, table: Table, name: str) -> str:
    """Static estimates of the ops of APNB, where the report has the size."""
    if table is not papers.ANN_1 or not name.startswith(operations.NAMES["apnb"] + " "):
        return ""
    height, width = map(int, name.split()[1].split("x"))
    shape = Block(height, width).shape
    lines = []
    for op in ("pyramid_pool", "anchor_attention"):
        rows = [row for row in static.preferred(results.static_rows, op) if row["shape"] == shape]
        words = static.estimate([row for row in rows if row["pass"] == "forward"])
        lines += [f"{op} {words}"] if words else []
    return f"{STATIC} (us, {static.DTYPE}): {'; '.join(lines)}" if lines else ""


FINDERS: dict[Table, Finder] = {
    papers.ANN_1: _ann_1,
    papers.ANN_CLAIM: _ann_claim,
    papers.ANN_2: _ann_2,
    papers.GALD_4: _gald_4,
    papers.SEGNEXT_11: _segnext_11,
    papers.SCALES: _scales,
}
