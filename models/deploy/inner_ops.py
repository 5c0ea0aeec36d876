"""Calls of the C++ kernels without the ops of attnops around them.

An op of attnops chooses its implementation in Python whenever it runs. In a compiled network there
is nothing to choose: those that a network runs dozens of times go to the C++ library directly. One
of the library's is no op of attnops, because only weights that never change again can be laid out
for it: the feed-forward network of SegNeXt with its residual (`ResidualFeedForward`). Another is
the factorisation of maps in bfloat16 with factors in float32, of which attnops has no gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import attnops
from attnops._choice import current_backend
from attnops._layout import dense
from attnops._op import OPS, Op
from attnops.env import library

DIRECT = ("depthwise_gelu", "feed_forward", "nmf", "strip_conv")
FEED_FORWARD = "packed_feed_forward"
MIXED_NMF = "mixed_nmf"

_library = torch.library.Library("attnops_cpu", "FRAGMENT")
_known: set[str] = set()


def has_library() -> bool:
    """Whether the C++ library with these ops is loaded."""
    available = attnops.backends()
    own = all(hasattr(torch.ops.attnops_cpu, name) for name in (FEED_FORWARD, MIXED_NMF))
    return own and all(available[name]["cpu"] for name in DIRECT)


def uses_vectors() -> bool:
    """Whether it uses more than the instructions that every processor of its kind has."""
    return (library("cpu") or {}).get("isa") in ("avx2", "avx512")


def uses_tiles() -> bool:
    """Whether it multiplies by the tiles of AMX."""
    return (library("cpu") or {}).get("bfloat16") == "AMX"


def runs_inner_ops() -> bool:
    """Whether that library is there, and no other backend was chosen."""
    return current_backend() in ("auto", "cpu") and has_library()


def direct_calls(half: bool) -> dict[Any, Callable[..., tuple[Tensor, ...]]]:
    """For every op of `DIRECT` what calls the C++ library in its place; nothing where another
    backend was chosen, or the library is not there.

    Args:
        half: whether maps are bfloat16, also those that were widened for an op.
    """
    if not runs_inner_ops():
        return {}
    ops = [op for op in OPS if op.name in DIRECT]
    calls = {op.name: _direct(op) for op in ops}
    if half:
        calls["nmf"] = _mixed_nmf()
    return {getattr(torch.ops.attnops, name).default: call for name, call in calls.items()}


def declare_feed_forward() -> None:
    """Tell compilers what `attnops_cpu::packed_feed_forward` gives."""
    declare(FEED_FORWARD, _like_first)


def declare(name: str, fake: Callable[..., Any]) -> None:
    """Tell compilers once what the library's op `name` gives."""
    if name not in _known:
        torch.library.register_fake(f"attnops_cpu::{name}", fake, lib=_library)
        _known.add(name)


def convolved(x: Tensor, outputs: int, dtype: torch.dtype | None = None, stride: int = 1) -> Tensor:
    """What a convolution of the library gives whose border keeps a map's size, for compilers.

    Its strides are those of the memory format as they know them: they ask whether maps have them.
    """
    sides = x.shape[2:] if stride == 1 else [(side - 1) // stride + 1 for side in x.shape[2:]]
    size = (x.shape[0], outputs, *sides)
    return torch.empty(
        size, dtype=dtype or x.dtype, device=x.device, memory_format=torch.channels_last
    )


def _like_first(x: Tensor, *weights: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _direct(op: Op) -> Callable[..., tuple[Tensor, ...]]:
    """What `op` does on the CPU, its trace included, of which nobody reads more than the dtype."""
    inner = getattr(torch.ops.attnops_cpu, op.name).default
    single = len(inner._schema.returns) == 1
    fake = op._forward.fake
    declare(op.name, (lambda *args: fake(*args)[0]) if single else fake)

    def run(*args: Any) -> tuple[Tensor, ...]:
        outputs = inner(*op._forward.prepare(*args))
        outputs = (outputs,) if single else outputs
        if op._restore is not None:
            outputs = op._restore(args, outputs)
        return (*outputs, args[0].new_empty((0,), dtype=torch.uint8))

    return run


def _mixed_nmf() -> Callable[..., tuple[Tensor, ...]]:
    """What `nmf` without gradients does of maps that are rounded to bfloat16."""
    declare(MIXED_NMF, _factors)

    def run(x: Tensor, bases: Tensor, steps: int, inv_t: float, eps: float, *options: Any) -> Any:
        half, wide = dense(x.bfloat16()), bases.float().contiguous()
        factors = torch.ops.attnops_cpu.mixed_nmf(half, wide, steps, inv_t, eps)
        past, trace = wide.new_empty((0,)), x.new_empty((0,), dtype=torch.uint8)
        return *(factor.to(bases.dtype) for factor in factors), past, past, trace

    return run


def _factors(x: Tensor, bases: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(bases), bases.new_empty((x.shape[0], x.shape[2], bases.shape[2]))
