"""Functions that torch.fx, and classes with `__torch_function__`, can stand in for."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.overrides import handle_torch_function, has_torch_function


def overridable(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, handed to its arguments' `__torch_function__` first, as PyTorch's own are.

    So torch.fx.symbolic_trace records it as one call.
    """

    @wraps(function)
    def public(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling() and _may_be_overridden((*args, *kwargs.values())):
            relevant = tuple(_relevant((*args, *kwargs.values())))
            if has_torch_function(relevant):
                return handle_torch_function(public, relevant, *args, **kwargs)
        return function(*args, **kwargs)

    return public


# Types of arguments whose class overrides nothing.
_PLAIN = {torch.Tensor, torch.nn.Parameter, int, float, bool, str, type(None), torch.dtype}


def _may_be_overridden(values: tuple[Any, ...]) -> bool:
    return not _PLAIN.issuperset(map(type, values)) or torch._C._len_torch_function_stack() > 0


def _relevant(values: tuple[Any, ...]) -> list[Any]:
    """The arguments, and what is in lists and tuples among them."""
    found = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found += _relevant(tuple(value))
        elif hasattr(type(value), "__torch_function__"):
            found.append(value)
    return found
