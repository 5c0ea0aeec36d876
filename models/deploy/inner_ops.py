"""Calls of the C++ kernels without the ops of attnops around them.

An op of attnops chooses its implementation in Python whenever it runs. In a compiled network there
is nothing to choose: those that a network runs dozens of times go to the C++ library directly. One
of the library's is no op of attnops, because only weights that never change again can be laid out
for it: the feed-forward network of SegNeXt (`ResidualFeedForward`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import attnops
from attnops._choice import current_backend
from attnops._op import OPS, Op

DIRECT = ("depthwise_gelu", "nmf", "strip_conv")
FEED_FORWARD = "feed_forward"

_library = torch.library.Library("attnops_cpu", "FRAGMENT")
_known: set[str] = set()


def has_library() -> bool:
    """Whether the C++ library with `DIRECT` and `FEED_FORWARD` is loaded."""
    available = attnops.backends()
    inner = torch.ops.attnops_cpu
    return all(available[name]["cpu"] for name in DIRECT) and hasattr(inner, FEED_FORWARD)


def runs_inner_ops() -> bool:
    """Whether that library is there, and no other backend was chosen."""
    return current_backend() in ("auto", "cpu") and has_library()


def direct_calls() -> dict[Any, Callable[..., tuple[Tensor, ...]]]:
    """For every op of `DIRECT` what calls the C++ library in its place; nothing where another
    backend was chosen, or the library is not there.
    """
    if not runs_inner_ops():
        return {}
    ops = [op for op in OPS if op.name in DIRECT]
    return {getattr(torch.ops.attnops, op.name).default: _direct(op) for op in ops}


def declare_feed_forward() -> None:
    """Tell compilers what `attnops_cpu::feed_forward` gives."""
    if FEED_FORWARD not in _known:
        torch.library.register_fake(f"attnops_cpu::{FEED_FORWARD}", _like_first, lib=_library)
        _known.add(FEED_FORWARD)


def _like_first(x: Tensor, *weights: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _direct(op: Op) -> Callable[..., tuple[Tensor, ...]]:
    """What `op` does on the CPU, its trace included, of which nobody reads more than the dtype."""
    inner = getattr(torch.ops.attnops_cpu, op.name).default
    single = len(inner._schema.returns) == 1
    if op.name not in _known:
        fake = op._forward.fake
        made = (lambda *args: fake(*args)[0]) if single else fake
        torch.library.register_fake(f"attnops_cpu::{op.name}", made, lib=_library)
        _known.add(op.name)

    def run(*args: Any) -> tuple[Tensor, ...]:
        outputs = inner(*op._forward.prepare(*args))
        outputs = (outputs,) if single else outputs
        if op._restore is not None:
            outputs = op._restore(args, outputs)
        return (*outputs, args[0].new_empty((0,), dtype=torch.uint8))

    return run
