"""The inputs that stand for each op: the table's, and larger batches."""

from __future__ import annotations

from ..ops.cases import OpCase
from ..ops.definitions import DEFINITIONS
from ..ops.definitions._definition import Variant, variant

DTYPES = ("bfloat16", "float32")
HALF = "float16"  # shares its code paths with bfloat16: the first input alone
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_NMF = {"rank": 64, "steps": 6}

VARIANTS: dict[str, tuple[Variant, ...]] = {
    "local_attention": (
        variant(1, 256, 64, 64, kernel=5, dilation=3),
        variant(1, 256, 128, 128, kernel=5, dilation=3),
        variant(8, 256, 64, 64, kernel=5, dilation=3),
    ),
    "anchor_attention": (
        variant(1, 2048, 256, 128),
        variant(1, 2048, 96, 96),
        variant(1, 512, 64, 64),
    ),
    "pyramid_pool": (variant(1, 2048, 256, 128), variant(1, 512, 64, 64)),
    "strip_conv": (
        variant(1, 64, 128, 128),
        variant(1, 320, 32, 32),
        variant(8, 64, 128, 128),
    ),
    "nmf": (
        variant(1, 512, 4096, **_NMF, grad="unrolled"),
        variant(1, 512, 4096, **_NMF, grad="one_step"),
        variant(1, 256, 4096, rank=16, steps=6, grad="unrolled"),
        variant(8, 512, 4096, **_NMF, grad="unrolled"),
    ),
    "upsample_gate": (variant(1, 512, 64, 64, side=8), variant(8, 512, 64, 64, side=8)),
    "group_attention": (variant(1, 256, 64, 64), variant(8, 256, 64, 64)),
    "feed_forward": (
        variant(1, 64, 64, 64, hidden=512),
        variant(8, 64, 64, 64, hidden=512),
    ),
    "depthwise_gelu": (variant(1, 512, 64, 64), variant(8, 512, 64, 64)),
    "merge_scales": (
        variant(1, 21, 161, 161, sides=(81, 41)),
        variant(8, 21, 161, 161, sides=(81, 41)),
    ),
    "upsample_cross_entropy": (
        variant(1, 150, 64, 64, factor=8),
        variant(8, 150, 64, 64, factor=8),
    ),
    "upsample_argmax": (variant(1, 150, 64, 64, factor=8), variant(8, 150, 64, 64, factor=8)),
}


def representative(op: str) -> list[OpCase]:
    """Every input of `op`, with its backward pass where there is one."""
    definition = DEFINITIONS[op]
    direction = "forward+backward" if definition.differentiable else "forward"
    return [
        OpCase(op, chosen.shape, dtype, layout, direction, chosen.options)
        for chosen in VARIANTS[op]
        for dtype in (*DTYPES, *([HALF] if chosen == VARIANTS[op][0] else []))
        for layout in definition.layouts
    ]


def is_first(case: OpCase) -> bool:
    """Whether it is the first input of its op, in bfloat16."""
    first = VARIANTS[case.op][0]
    same = (case.shape, case.options) == (first.shape, first.options)
    return same and case.dtype == DTYPES[0]


def is_aligned(case: OpCase) -> bool:
    """Whether every row of the input's maps starts at a multiple of 16 bytes."""
    length = case.shape[1] if case.layout == "channels_last" else case.shape[-1]
    return length * DTYPE_BYTES[case.dtype] % 16 == 0
