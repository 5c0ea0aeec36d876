"""Triton implementations of the ops: a folder an op, a file a direction.

Importing this needs Triton, nothing else: no GPU, and kernels compile when they are first launched.
"""

from __future__ import annotations

from importlib import import_module

import triton  # noqa: F401  (its absence is the reason that the loader reports)

from .. import _dispatch

# Folders: <op>/forward.py has `forward` and `refuse`, <op>/backward.py has `backward`.
OPS = (
    "anchor_attention",
    "depthwise_gelu",
    "group_attention",
    "local_attention",
    "merge_scales",
    "nmf",
    "pyramid_pool",
    "strip_conv",
    "upsample_argmax",
    "upsample_cross_entropy",
    "upsample_gate",
)
WITHOUT_BACKWARD = ("upsample_argmax",)


def register_all() -> None:
    """Register every op that has Triton kernels with the contract."""
    for op in OPS:
        forward = import_module(f"{__name__}.{op}.forward")
        backward = None
        if op not in WITHOUT_BACKWARD:
            backward = import_module(f"{__name__}.{op}.backward").backward
        _dispatch.register(
            op, "triton", forward=forward.forward, backward=backward, refuse=forward.refuse
        )
