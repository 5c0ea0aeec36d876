"""What every op and network has to reach on a GPU, in half precision.

Ratios to others count both sides in their better memory format, and by graph replay too: at batch 1
many of these inputs are bound by their launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..networks import COMPILED as NETWORK_COMPILED
from ..networks import TABLE as NETWORKS
from ..ops.cases import COMPILED, CUDNN, DIRECTIONS, EAGER, NATTEN, OURS
from .goal import Goal, divide
from .records import Row

FORWARD, BOTH = DIRECTIONS
FLOOR, COPY, MEMORY = "% of the floor", "% of copy bandwidth", "times less memory than"
FASTER = "times faster than"


@dataclass(frozen=True)
class Must:
    """At least so much of `what`, of rows of a table; `against`: the contender of a ratio."""

    table: str
    direction: str
    what: str
    needed: float
    against: str = ""

    @property
    def words(self) -> str:
        return f"{self.table}, {self.direction}: {self.what} {self.against}".strip()


MUSTS = (
    Must("local_attention", FORWARD, FLOOR, 60),
    Must("local_attention", BOTH, FLOOR, 40),
    Must("local_attention", FORWARD, FASTER, 3, COMPILED),
    Must("local_attention", FORWARD, FASTER, 1, NATTEN),
    Must("strip_conv", FORWARD, FASTER, 5, CUDNN),
    Must("strip_conv", BOTH, FASTER, 5, CUDNN),
    Must("strip_conv", FORWARD, FLOOR, 50),
    Must("nmf", FORWARD, FASTER, 3, COMPILED),
    Must("upsample_gate", FORWARD, COPY, 80),
    Must("merge_scales", FORWARD, COPY, 80),
    Must("upsample_cross_entropy", BOTH, FASTER, 3, EAGER),
    Must("upsample_cross_entropy", BOTH, MEMORY, 10, EAGER),
    Must(NETWORKS, "predict", FASTER, 1.5, NETWORK_COMPILED),
    Must(NETWORKS, "training step", FASTER, 1.5, NETWORK_COMPILED),
)


def of(rows: Sequence[Row]) -> Iterator[Goal]:
    """A goal for every requirement and input of which ours was measured."""
    for must in MUSTS:
        same = [r for r in rows if (r.table, r.direction) == (must.table, must.direction)]
        same = [r for r in same if r.on_gpu and r.dtype in ("bfloat16", "float16") and r.p50]
        for given in dict.fromkeys(row.input_in_any_layout for row in same):
            here = [row for row in same if row.input_in_any_layout == given]
            ours = [row for row in here if row.name == OURS or row.name.startswith(f"{OURS} (")]
            theirs = [row for row in here if row.name == must.against]
            if ours and (theirs or not must.against):
                yield _goal(must, ours, theirs)


def not_measured() -> list[Goal]:
    """Every requirement, for results without a GPU."""
    where, note = "on a GPU, half precision", "needs a GPU"
    return [Goal(m.words, where, f">= {m.needed:g}", None, None, None, note) for m in MUSTS]


def _goal(must: Must, ours: Sequence[Row], theirs: Sequence[Row]) -> Goal:
    best = min(ours, key=lambda row: row.p50)
    if must.what == FASTER:
        values = [_ratio(theirs, ours, lambda row: row.p50)]
        values.append(_ratio(theirs, ours, lambda row: row.graph_p50))
    elif must.what == MEMORY:
        values = [_ratio(theirs, ours, lambda row: row.memory_above_inputs), None]
    else:
        share = best.floor_percent if must.what == FLOOR else best.bandwidth_percent
        replayed = None if share is None else divide(share * best.p50, best.graph_p50)
        values = [share, replayed]
    shape = "x".join(map(str, best.shape))
    options = " ".join(str(value) for _, value in best.options)
    where = " ".join(part for part in (shape, options, best.dtype) if part)
    met = None if values[0] is None else values[0] >= must.needed
    return Goal(must.words, where, f">= {must.needed:g}", *values, met, best.name)


def _ratio(
    theirs: Sequence[Row], ours: Sequence[Row], value: Callable[[Row], float | None]
) -> float | None:
    """The least of theirs over the least of ours."""
    least = (min(filter(None, map(value, rows)), default=None) for rows in (theirs, ours))
    return divide(*least)
