"""Functions that torch.fx, and classes with `__torch_function__`, can stand in for."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.overrides import handle_torch_function, has_torch_function

from .plans import Call, Plans, noting
from .recorded import Replay


def overridable(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, handed to its arguments' `__torch_function__` first, as PyTorch's own are.

    So torch.fx.symbolic_trace records it as one call. Calls that look like earlier ones skip what
    those have decided (`plans`).
    """
    plans = Plans()

    @wraps(function)
    def public(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        call = plans.find((*args, *kwargs.values()), *kwargs)
        if call is not None:
            if call.look.plan is not None:
                return call.look.plan(call)
            return _watched(call, function, *args, **kwargs)
        if _may_be_overridden((*args, *kwargs.values())):
            relevant = tuple(_relevant((*args, *kwargs.values())))
            if has_torch_function(relevant):
                return handle_torch_function(public, relevant, *args, **kwargs)
        return function(*args, **kwargs)

    return public


def _watched(call: Call, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs); where it is time for it, a plan for such calls is made."""
    if not call.look.is_due():
        return function(*args, **kwargs)
    noting.calls, noting.plan = [], None
    try:
        result = function(*args, **kwargs)
        if noting.plan is not None:
            call.look.settle(Replay.of(call, result))
    finally:
        noting.calls = None
    return result


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
