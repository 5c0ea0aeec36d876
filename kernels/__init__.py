"""Triton implementations of the ops, one file an op and direction.

Importing this needs Triton, nothing else: no GPU, and kernels compile when they are first launched.
"""

from __future__ import annotations

import triton  # noqa: F401  (its absence is the reason that the loader reports)

from .. import _dispatch


def register_all() -> None:
    """Register every op that has Triton kernels with the contract."""
    from . import (
        anchor_attention,
        anchor_attention_backward,
        depthwise_gelu,
        group_attention,
        local_attention,
        local_attention_backward,
        merge_scales,
        merge_scales_backward,
        nmf,
        nmf_backward,
        pyramid_pool,
        pyramid_pool_backward,
        strip_conv,
        strip_conv_backward,
        upsample_argmax,
        upsample_cross_entropy,
        upsample_cross_entropy_backward,
        upsample_gate,
    )

    _dispatch.register(
        "pyramid_pool",
        "triton",
        forward=pyramid_pool.forward,
        backward=pyramid_pool_backward.backward,
        refuse=pyramid_pool.refuse,
    )
    _dispatch.register(
        "anchor_attention",
        "triton",
        forward=anchor_attention.forward,
        backward=anchor_attention_backward.backward,
        refuse=anchor_attention.refuse,
    )
    _dispatch.register(
        "local_attention",
        "triton",
        forward=local_attention.forward,
        backward=local_attention_backward.backward,
        refuse=local_attention.refuse,
    )
    _dispatch.register(
        "nmf",
        "triton",
        forward=nmf.forward,
        backward=nmf_backward.backward,
        refuse=nmf.refuse,
    )
    for module in (depthwise_gelu, group_attention, upsample_gate):
        _dispatch.register(
            module.__name__.rpartition(".")[2],
            "triton",
            forward=module.forward,
            backward=module.backward,
            refuse=module.refuse,
        )
    _dispatch.register(
        "strip_conv",
        "triton",
        forward=strip_conv.forward,
        backward=strip_conv_backward.backward,
        refuse=strip_conv.refuse,
    )
    _dispatch.register(
        "merge_scales",
        "triton",
        forward=merge_scales.forward,
        backward=merge_scales_backward.backward,
        refuse=merge_scales.refuse,
    )
    _dispatch.register(
        "upsample_argmax",
        "triton",
        forward=upsample_argmax.forward,
        backward=None,
        refuse=upsample_argmax.refuse,
    )
    _dispatch.register(
        "upsample_cross_entropy",
        "triton",
        forward=upsample_cross_entropy.forward,
        backward=upsample_cross_entropy_backward.backward,
        refuse=upsample_cross_entropy.refuse,
    )
