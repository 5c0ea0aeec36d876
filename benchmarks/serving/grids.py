"""Tables of the serving rows."""

from __future__ import annotations

from collections.abc import Iterable

from ..report.grid import Grid, number
from ..report.records import Row

TABLE = "serving"
OURS = "attnops"  # how the names of our contenders begin


def grids(rows: Iterable[Row]) -> list[Grid]:
    """One table for each precision and setting of glibc: a line a network and contender."""
    rows = [row for row in rows if row.table == TABLE]
    keys = dict.fromkeys((row.dtype, dict(row.options)["malloc"]) for row in rows)
    return [_grid(dtype, malloc, rows) for dtype, malloc in keys]


def _grid(dtype: str, malloc: str, rows: list[Row]) -> Grid:
    header = ["network", "who", "ms p50 [p20, p80]", "x best peer", "% of floor", "ready s"]
    header += ["peak MiB", "equal labels", ""]
    cells = []
    chosen = [r for r in rows if r.dtype == dtype and dict(r.options)["malloc"] == malloc]
    for row in chosen:
        network = dict(row.options)["network"]
        size = "x".join(map(str, row.shape[2:]))
        spread = f"{number(row.p50)} [{number(row.p20)}, {number(row.p80)}]" if row.p50 else ""
        cells.append(
            (
                f"{network}, {size}",
                row.name,
                spread,
                number(best_peer(row)) if row.name.startswith(OURS) else "",
                number(row.floor_percent),
                number(row.ready_s),
                number(row.peak_mib),
                "" if row.agreement is None else f"{100 * row.agreement:.2f} %",
                row.note,
            )
        )
    where = f"{chosen[0].threads} threads: {chosen[0].device}"
    title = f"Labels, {dtype}, glibc {_SETTING[malloc]}, {where}"
    notes = [
        "x best peer: time of the fastest of the others over this one's, all in turn in one "
        "process. equal labels: to those of `predict` in float32. Floor: multiply-adds of the "
        "products at the measured rate of a large matrix product; the 3x3 convolutions of a "
        "deployment may take fewer (Winograd's algorithm), and with AMX it multiplies float32 "
        "in bfloat16 parts, faster than that.",
    ]
    return Grid(title, header, cells, notes).without_empty_columns()


_SETTING = {"default": "as it is", "kept": "keeping freed memory"}


def best_peer(row: Row) -> float | None:
    """Time of the fastest peer over this row's."""
    times = [ratio for name, ratio in row.ratios.items() if not name.startswith(OURS)]
    return min(times, default=None)
