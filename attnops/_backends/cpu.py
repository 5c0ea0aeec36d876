"""The C++ implementations for CPU tensors (csrc/cpu)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..anchor_attention import MAX_FUSED_ANCHORS
from .isa import settle_instruction_set
from .library import load, register_ops
from .score_maps import with_reductions

MAX_BASES = 1024  # every thread keeps several Gram matrices, R x R


def _refuse_device(x: Tensor, *args: Any) -> str | None:
    return None if x.device.type == "cpu" else f"it runs CPU tensors only, got {x.device}"


def _refuse_feed_forward(x: Tensor, weights: list[Tensor], *args: Any) -> str | None:
    if weights[1].shape[2:] != (3, 3):
        return f"its depthwise kernels are 3x3, got {'x'.join(map(str, weights[1].shape[2:]))}"
    return _refuse_device(x)


def _refuse_scores(scores: list[Tensor], *args: Any) -> str | None:
    return _refuse_device(scores[0])


def _refuse_pyramid_pool(x: Tensor, *args: Any) -> str | None:
    if x.shape[2] * x.shape[3] >= 2**31:
        return f"it indexes planes of less than 2^31 pixels, got {x.shape[2]}x{x.shape[3]}"
    return _refuse_device(x)


def _refuse_anchor_attention(query: Tensor, key: Tensor, *args: Any) -> str | None:
    if key.shape[2] > MAX_FUSED_ANCHORS:
        return f"it holds up to {MAX_FUSED_ANCHORS} anchors, got S={key.shape[2]}"
    return _refuse_device(query)


def _refuse_nmf(x: Tensor, bases: Tensor, *args: Any) -> str | None:
    if bases.shape[2] > MAX_BASES:
        return f"it holds up to {MAX_BASES} bases, got R={bases.shape[2]}"
    return _refuse_device(x)


# op -> why an input cannot run, or None
OPS = {
    "pyramid_pool": _refuse_pyramid_pool,
    "anchor_attention": _refuse_anchor_attention,
    "local_attention": _refuse_device,
    "upsample_gate": _refuse_device,
    "group_attention": _refuse_device,
    "strip_conv": _refuse_device,
    "depthwise_gelu": _refuse_device,
    "feed_forward": _refuse_feed_forward,
    "nmf": _refuse_nmf,
    "merge_scales": _refuse_scores,
    "upsample_argmax": _refuse_device,
    "upsample_cross_entropy": _refuse_device,
}


def register_all() -> None:
    """Load the library and register its ops.

    Raises:
        BackendNotInstalled: the library was not built.
        IncompleteBackend: it lacks ops.
        ImportError: it cannot be loaded.
    """
    load("cpu")
    register_ops("cpu", OPS, {"upsample_cross_entropy": with_reductions})
    settle_instruction_set()
