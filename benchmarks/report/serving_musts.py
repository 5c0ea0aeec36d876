"""What a deployed network has to reach on a CPU: against other runtimes, and its labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..serving.contenders import CONTENDERS
from ..serving.grids import OURS, TABLE
from ..serving.table import NETWORKS
from . import musts
from .goal import Goal
from .musts import FORWARD, Must
from .records import Row

DEPLOYED = "attnops deploy"
OPENVINO, FROZEN = ("OpenVINO",), ("torch.compile with freezing, published chain",)
PEERS = tuple(name for name in CONTENDERS if not name.startswith(OURS))
SHAPE = (1, 3, 512, 512)
EQUAL = {"float32": 99.9, "bfloat16": 98.5}  # least percentage of labels that stay as they are


def _must(network: str, dtype: str, against: tuple[str, ...], needed: float, **others: str) -> Must:
    options, others = {"network": network}, {"malloc": "default"} | others
    return Must(TABLE, SHAPE, FORWARD, against, needed, options, (DEPLOYED,), dtype=dtype, **others)


MUSTS = (
    _must("segnext_t", "float32", ("onnxruntime",), 2.8),
    _must("segnext_t", "float32", FROZEN, 1.8, malloc="kept"),
    *(
        _must(network, dtype, OPENVINO, needed)
        for network in ("segnext_t", "segnext_s", "segnext_b")
        for dtype, needed in (("float32", 3), ("bfloat16", 1.8))
    ),
    _must("ann_r50", "float32", OPENVINO, 1.25),
    _must("ann_r50", "bfloat16", OPENVINO, 1.15),
    *(
        _must(network, dtype, PEERS, 1, peers="the fastest of all peers")
        for network in NETWORKS.split(",")
        for dtype in EQUAL
    ),
)


def of(rows: Sequence[Row]) -> list[Goal]:
    """Every requirement, measured or not."""
    return [*musts.of(rows, MUSTS), *_labels(rows)]


def _labels(rows: Sequence[Row]) -> Iterator[Goal]:
    """The share of a deployed network's labels that are those of `predict` in float32."""
    for network in NETWORKS.split(","):
        for dtype, needed in EQUAL.items():
            shares = [
                100 * row.agreement
                for row in rows
                if (row.table, row.name, row.dtype) == (TABLE, DEPLOYED, dtype)
                and dict(row.options)["network"] == network
                and row.agreement is not None
            ]
            share = min(shares, default=None)
            met = None if share is None else share >= needed
            what = f"{network}, deployed: % of labels equal to predict's in float32"
            where = f"{'x'.join(map(str, SHAPE))} {dtype}"
            yield Goal(what, where, f">= {needed:g}", share, None, met)
