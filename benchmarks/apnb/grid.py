"""The APNB table as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from ..report.grid import Grid, markdown, number
from ..report.records import Document, Row
from . import operations
from .cases import EAGER_LINEAR, EAGER_NON_LOCAL, EAGER_RELEASED
from .run import TABLE

HEADER = (
    "block",
    "on",
    "GMAC",
    "done",
    "paper",
    "MiB beyond i/o",
    "beyond in",
    "paper MB",
    "ms p50 [p20, p80]",
    "graph ms",
    "paper ms",
    "x eager NL",
    "x eager APNB",
    "% of floor",
    "note",
)


def grids(rows: Sequence[Row]) -> Iterator[Grid]:
    """One grid per input."""
    for key, group in groupby((row for row in rows if row.table == TABLE), lambda row: row.input):
        yield _grid(list(group), key)


def _grid(rows: list[Row], key: tuple) -> Grid:
    _, shape, dtype, layout, direction, device, _ = key
    where = device if rows[0].threads is None else f"{device}, {rows[0].threads} threads"
    title = f"APNB {list(shape)}, {dtype}, {layout}, {direction}: {where}"
    notes: list[str] = []
    grid = Grid(title, HEADER)
    for row in rows:
        mark = ""
        if row.note:
            if row.note not in notes:
                notes.append(row.note)
            mark = f"[{notes.index(row.note) + 1}]"
        paper = row.paper
        grid.cells.append(
            (
                row.name,
                row.backend,
                number(row.gmac, 4),
                number(row.gmac_done, 4),
                number(paper.get("gflops"), 4),
                number(row.memory_above_inputs_and_output),
                number(row.memory_above_inputs),
                number(paper.get("mb"), 4),
                _time(row),
                number(row.graph_p50),
                number(paper.get("ms"), 4),
                _ratio(row, EAGER_NON_LOCAL),
                _ratio(row, _same_form(row)),
                number(row.floor_percent),
                mark,
            )
        )
    grid.notes = [f"[{i}] {note}" for i, note in enumerate(notes, 1)]
    return grid.without_empty_columns()


def _time(row: Row) -> str:
    if row.p50 is None:
        return "-"
    return f"{number(row.p50)} [{number(row.p20)}, {number(row.p80)}]"


def _same_form(row: Row) -> str:
    """The eager APNB that computes what this row computes; "" for a non-local block."""
    if "APNB" not in row.name:
        return ""
    return EAGER_RELEASED if "released" in row.name else EAGER_LINEAR


def _ratio(row: Row, reference: str) -> str:
    if row.name == reference:
        return "1"
    return number(row.ratios.get(reference))


def legend(document: Document) -> list[str]:
    rates = document.parts.get("rates", {}).values()
    measured = "; ".join(
        f"{r['dtype']}: copy {r['copy_gb_s']:.0f} GB/s, matrix product "
        f"{r['matmul_gflop_s']:.0f} GFLOP/s"
        for r in rates
    )
    return [
        *operations.NOTES,
        "on: the backend of attnops that ran. "
        "Memory: peak beyond the input, with and without the output; weights count as input. The "
        "paper's MB and ms: Titan Xp.",
        "x: how many times faster than the eager non-local block, and than the eager APNB of the "
        "same form. linear: the paper's equations. released: BatchNorm and ReLU on key and query, "
        "which share a projection that the released code runs twice; once: run a single time. "
        "compiled: torch.compile of the eager form, which runs it once. SDPA: the non-local block "
        "through scaled_dot_product_attention.",
        "floor: the longer of moving input and output once at the measured copy bandwidth and of "
        "the fewest multiply-adds known at the measured matrix-product rate "
        f"({measured}).",
    ]


def as_markdown(document: Document) -> str:
    parts = [markdown(grid, level=3) for grid in grids(document.rows)]
    return "\n".join([*parts, *(f"- {line}" for line in legend(document))]) + "\n"
