"""Triton implementations of the ops: a folder an op, a file a direction.

Importing this needs Triton, nothing else: no GPU, and kernels compile when they are first launched.
"""

from __future__ import annotations

from importlib import import_module

import triton  # noqa: F401  (its absence is the reason that the loader reports)

from .. import _dispatch

# The folders, and whether they have a backward: <op>/forward.py has `forward` and `refuse`,
# <op>/backward.py has `backward`.
OPS = {
    "anchor_attention": True,
    "depthwise_gelu": True,
    "feed_forward": True,
    "group_attention": True,
    "local_attention": True,
    "merge_scales": True,
    "nmf": True,
    "pyramid_pool": True,
    "strip_conv": True,
    "upsample_argmax": False,
    "upsample_cross_entropy": True,
    "upsample_gate": True,
}


def register_all() -> None:
    """Register every op that has Triton kernels with the contract."""
    for op, has_backward in OPS.items():
        forward = import_module(f"{__name__}.{op}.forward")
        backward = None
        if has_backward:
            backward = import_module(f"{__name__}.{op}.backward").backward
        _dispatch.register(
            op, "triton", forward=forward.forward, backward=backward, refuse=forward.refuse
        )
