"""The C++ implementations for CPU tensors (csrc/cpu)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._dispatch import register
from ..anchor_attention import MAX_FUSED_ANCHORS
from ._load import load

MAX_BASES = 1024  # every thread keeps several Gram matrices, R x R


def _refuse_device(x: Tensor, *args: Any) -> str | None:
    return None if x.device.type == "cpu" else f"it runs CPU tensors only, got {x.device}"


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


def register_all() -> None:
    """Load the library and register its ops.

    Raises:
        ImportError: the library is not there or cannot be loaded.
    """
    load("cpu")
    ops = torch.ops.attnops_cpu
    register(
        "pyramid_pool",
        "cpu",
        forward=ops.pyramid_pool.default,
        backward=ops.pyramid_pool_backward.default,
        refuse=_refuse_pyramid_pool,
    )
    register(
        "anchor_attention",
        "cpu",
        forward=ops.anchor_attention.default,
        backward=ops.anchor_attention_backward.default,
        refuse=_refuse_anchor_attention,
    )
    register(
        "local_attention",
        "cpu",
        forward=ops.local_attention.default,
        backward=ops.local_attention_backward.default,
        refuse=_refuse_device,
    )
    register(
        "upsample_gate",
        "cpu",
        forward=lambda *args: (ops.upsample_gate.default(*args),),
        backward=ops.upsample_gate_backward.default,
        refuse=_refuse_device,
    )
    register(
        "group_attention",
        "cpu",
        forward=ops.group_attention.default,
        backward=ops.group_attention_backward.default,
        refuse=_refuse_device,
    )
    register(
        "strip_conv",
        "cpu",
        forward=lambda *args: (ops.strip_conv.default(*args),),
        backward=ops.strip_conv_backward.default,
        refuse=_refuse_device,
    )
    register(
        "depthwise_gelu",
        "cpu",
        forward=lambda *args: (ops.depthwise_gelu.default(*args),),
        backward=ops.depthwise_gelu_backward.default,
        refuse=_refuse_device,
    )
    register(
        "nmf",
        "cpu",
        forward=ops.nmf.default,
        backward=ops.nmf_backward.default,
        refuse=_refuse_nmf,
    )
    register(
        "merge_scales",
        "cpu",
        forward=lambda *args: (ops.merge_scales.default(*args),),
        backward=ops.merge_scales_backward.default,
        refuse=_refuse_scores,
    )
    register(
        "upsample_argmax",
        "cpu",
        forward=lambda *args: (ops.upsample_argmax.default(*args),),
        backward=None,
        refuse=_refuse_device,
    )
    register(
        "upsample_cross_entropy",
        "cpu",
        forward=ops.upsample_cross_entropy.default,
        backward=ops.upsample_cross_entropy_backward.default,
        refuse=_refuse_device,
    )
