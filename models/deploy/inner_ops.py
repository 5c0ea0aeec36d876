"""Calls of the C++ kernels without the ops of attnops around them.

An op of attnops chooses its implementation in Python whenever it runs. In a compiled network there
is nothing to choose: those that a network runs dozens of times go to the C++ library directly.
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

_library = torch.library.Library("attnops_cpu", "FRAGMENT")
_known: set[str] = set()


def has_library() -> bool:
    """Whether the C++ library with `DIRECT` is loaded."""
    available = attnops.backends()
    return all(available[name]["cpu"] for name in DIRECT)


def direct_calls() -> dict[Any, Callable[..., tuple[Tensor, ...]]]:
    """For every op of `DIRECT` what calls the C++ library in its place; nothing where another
    backend was chosen, or the library is not there.
    """
    if current_backend() not in ("auto", "cpu") or not has_library():
        return {}
    ops = [op for op in OPS if op.name in DIRECT]
    return {getattr(torch.ops.attnops, op.name).default: _direct(op) for op in ops}


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
