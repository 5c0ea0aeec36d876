"""What ops, blocks and networks have to reach on a CPU, compared with the rows of a results folder.

Both sides of a ratio stand in their better memory format, under the same setting of glibc.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..apnb.cases import EAGER_LINEAR, EAGER_RELEASED, OURS_LINEAR, OURS_RELEASED
from ..apnb.run import TABLE as APNB
from ..networks import TABLE as NETWORKS
from ..ops.cases import COMPILED, DIRECTIONS, EAGER, LAYOUTS, OURS
from ..serving.replaced import REPLACED, THEIRS
from ..serving.replaced import TABLE as SEGMENTOR
from .goal import Goal, divide
from .grid import number
from .records import Row

FORWARD, BOTH = DIRECTIONS


@dataclass(frozen=True)
class Must:
    """A ratio that the rows of a table have to show: the fastest of `against` over ours.

    Attributes:
        names: rows that are ours; the fastest counts.
        memory: compare peaks above the inputs instead of times.
        malloc: the only setting of glibc that counts; "": every one.
        layout: the only memory format of ours that counts; "": the better one.
        peers: `against` in words; "": its names.
    """

    table: str
    shape: tuple[int, ...]
    direction: str
    against: tuple[str, ...]
    needed: float
    options: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = (OURS,)
    memory: bool = False
    dtype: str = "float32"
    malloc: str = ""
    layout: str = ""
    peers: str = ""

    @property
    def words(self) -> str:
        what = self.options.get("network", self.table)
        ours = f", ours in {self.layout}" if self.layout else ""
        less = "times less memory than" if self.memory else "times faster than"
        return f"{what}, {self.direction}{ours}: {less} {self.peers or ' and '.join(self.against)}"

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        return [
            row
            for row in rows
            if row.table == self.table
            and tuple(row.shape) == self.shape
            and row.direction == self.direction
            and row.dtype == self.dtype
            and row.threads is not None
            and self.malloc in ("", _malloc(row))
            and self.options.items() <= dict(row.options).items()
        ]

    def value(self, row: Row) -> float | None:
        return row.memory_above_inputs if self.memory else row.p50


_LOCAL = {"kernel": 5, "dilation": 3}
_NMF = {"rank": 64, "steps": 6}
_MAP, _SCORES = (1, 256, 64, 64), (1, 150, 64, 64)
_STRIPS, _GATE, _BLOCK = (1, 64, 128, 128), (1, 512, 64, 64), (1, 2048, 96, 96)
_IMAGE, _SEGNEXT = (1, 3, 512, 512), {"network": "segnext_t"}
_SEGMENTOR = {"against": (THEIRS,), "names": (REPLACED,), "malloc": "kept"}
MUSTS = (
    Must("local_attention", _MAP, FORWARD, (EAGER,), 40, _LOCAL),
    Must("local_attention", _MAP, FORWARD, (COMPILED,), 2, _LOCAL),
    Must("local_attention", _MAP, BOTH, (EAGER,), 15, _LOCAL),
    Must("local_attention", _MAP, BOTH, (COMPILED,), 2.5, _LOCAL),
    *(
        Must("strip_conv", _STRIPS, FORWARD, (EAGER, COMPILED), 2.5, layout=layout)
        for layout in LAYOUTS
    ),
    Must("strip_conv", _STRIPS, BOTH, (EAGER, COMPILED), 3),
    Must(APNB, _BLOCK, FORWARD, (EAGER_LINEAR,), 3.5, names=(OURS_LINEAR,)),
    Must(APNB, _BLOCK, FORWARD, (EAGER_RELEASED,), 1.8, names=(OURS_RELEASED,)),
    Must("nmf", (1, 512, 4096), FORWARD, (EAGER,), 1.25, _NMF),
    Must("upsample_gate", _GATE, FORWARD, (EAGER,), 4, {"side": 8}),
    Must("upsample_gate", _GATE, FORWARD, (COMPILED,), 2, {"side": 8}),
    Must("upsample_gate", _GATE, BOTH, (EAGER,), 4, {"side": 8}),
    Must("upsample_argmax", _SCORES, FORWARD, (EAGER,), 6, {"factor": 8}),
    Must("upsample_cross_entropy", _SCORES, BOTH, (EAGER,), 3, {"factor": 8}),
    Must("upsample_cross_entropy", _SCORES, BOTH, (EAGER,), 8, {"factor": 8}, memory=True),
    Must(NETWORKS, _IMAGE, "predict", ("reference",), 2, _SEGNEXT),
    Must(SEGMENTOR, _IMAGE, "logits", needed=1.3, **_SEGMENTOR),
    Must(SEGMENTOR, _IMAGE, "labels", needed=1.6, **_SEGMENTOR),
    Must(SEGMENTOR, (2, 3, 256, 256), "training step", needed=1.5, **_SEGMENTOR),
)


def of(rows: Sequence[Row], musts: Sequence[Must] = MUSTS) -> list[Goal]:
    """Every requirement, once for each setting of glibc that was measured, else once."""
    return [goal for must in musts for goal in _goals(must, rows)]


def _goals(must: Must, rows: Sequence[Row]) -> Iterator[Goal]:
    chosen = [row for row in must.rows(rows) if must.value(row) is not None]
    where, needed = f"{'x'.join(map(str, must.shape))} {must.dtype}", f">= {must.needed:g}"
    measured = False
    for malloc, device in dict.fromkeys((_malloc(row), row.hardware) for row in chosen):
        same = [row for row in chosen if (_malloc(row), row.hardware) == (malloc, device)]
        mine = [row for row in _named(same, must.names) if must.layout in ("", row.layout)]
        ours = min(mine, key=must.value, default=None)
        peer = min(_named(same, must.against), key=must.value, default=None)
        if ours is None or peer is None:
            continue
        measured = True
        ratio = divide(must.value(peer), must.value(ours))
        setting = f", memory {malloc}" if malloc else ""
        note = "" if must.memory else _note(ours, peer, must.needed)
        yield Goal(must.words, f"{where}{setting}", needed, ratio, None, ratio >= must.needed, note)
    if not measured:
        where += f", memory {must.malloc}" if must.malloc else ""
        yield Goal(must.words, where, needed, None, None, None)


def _malloc(row: Row) -> str:
    return row.malloc or dict(row.options).get("malloc", "")


def _named(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    return [row for row in rows if row.name in names]


def _note(ours: Row, peer: Row, needed: float) -> str:
    """How much the floor would allow."""
    if not ours.floor_ms:
        return ""
    most = peer.p50 / ours.floor_ms
    reach = "" if most >= needed else ": out of reach on this machine"
    return (
        f"ours {number(ours.p50)} ms, {number(ours.floor_percent)} % of the floor, at which the "
        f"ratio is {number(most)}{reach}"
    )
