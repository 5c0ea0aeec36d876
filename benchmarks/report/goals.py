"""What the ops have to reach, compared with rows of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..apnb.cases import EAGER_NON_LOCAL, OURS_LINEAR, OURS_RELEASED, compiled_name
from ..apnb.run import TABLE
from ..ops.cases import OURS
from . import gpu_musts, musts, serving_musts
from .goal import Goal, divide
from .grid import Grid, number
from .records import Row

FORMS = (("linear", OURS_LINEAR), ("released", OURS_RELEASED))
LARGE = [1, 2048, 256, 128]


def _at_least(what: str, row: Row, needed: float, values: tuple[float | None, ...]) -> Goal:
    measured, replayed = values
    met = None if measured is None else measured >= needed
    return Goal(what, _where(row), f">= {needed:g}", measured, replayed, met)


def _where(row: Row) -> str:
    return f"{'x'.join(map(str, row.shape))} {row.dtype} {row.layout}"


def _faster(other: Row, row: Row) -> tuple[float | None, float | None]:
    return divide(other.p50, row.p50), divide(other.graph_p50, row.graph_p50)


def gpu_goals(rows: Sequence[Row]) -> list[Goal]:
    """The goals of the APNB table, of ops and of networks on a GPU."""
    return [*_gpu_table_goals(rows), *_bandwidth_goals(rows), *gpu_musts.of(rows)]


def _gpu_table_goals(rows: Sequence[Row]) -> Iterator[Goal]:
    chosen = [
        row
        for row in rows
        if row.table == TABLE and row.shape[1:] == LARGE[1:] and row.direction == "forward"
    ]
    found = {(row.input, row.name): row for row in chosen}
    for key in dict.fromkeys(row.input for row in chosen):
        for form, ours_name in FORMS:
            ours, eager = found.get((key, ours_name)), found.get((key, EAGER_NON_LOCAL))
            compiled = found.get((key, compiled_name(form, "default")))
            if ours is None:
                continue
            block = f"APNB {form}"
            if eager is not None:
                name = f"{block}: times faster than the eager non-local block"
                yield _at_least(name, ours, 30, _faster(eager, ours))
                name = f"{block}: times less memory beyond input and output"
                less = divide(
                    eager.memory_above_inputs_and_output, ours.memory_above_inputs_and_output
                )
                yield _at_least(name, ours, 100, (less, None))
            over = divide(ours.p50, ours.floor_ms), divide(ours.graph_p50, ours.floor_ms)
            met = None if over[0] is None else over[0] <= 1.5
            yield Goal(f"{block}: times the floor", _where(ours), "<= 1.5", *over, met)
            if compiled is not None:
                name = f"{block}: times faster than the compiled eager APNB"
                yield _at_least(name, ours, 3, _faster(compiled, ours))


def _bandwidth_goals(rows: Sequence[Row]) -> Iterator[Goal]:
    for row in rows:
        if (
            row.table in ("anchor_attention", "pyramid_pool")
            and row.name.startswith(OURS)
            and row.shape == LARGE
            and row.direction == "forward"
            and row.dtype != "float32"
        ):
            share = row.bandwidth_percent
            replayed = None if share is None else divide(share * row.p50, row.graph_p50)
            name = f"{row.table}{row.name.removeprefix(OURS)}"
            yield _at_least(f"{name}: % of copy bandwidth", row, 80, (share, replayed))


def of(rows: Sequence[Row]) -> list[Goal]:
    """Every goal that the rows say something about."""
    return [
        *gpu_goals([row for row in rows if row.threads is None]),
        *(goal for goal in (*musts.of(rows), *serving_musts.of(rows)) if goal.measured is not None),
    ]


def grid(goals: Sequence[Goal], title: str = "Goals") -> Grid:
    header = ("goal", "input", "required", "measured", "graph replay", "", "note")
    cells = [
        (
            goal.what,
            goal.where,
            goal.required,
            number(goal.measured),
            number(goal.replayed),
            goal.verdict,
            goal.note,
        )
        for goal in goals
    ]
    return Grid(title, header, cells).without_empty_columns()
