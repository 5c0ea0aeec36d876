"""Whether a call is seen by a transformation that ops cannot serve: forward mode, torch.func, ONNX.

Ops have a gradient, but neither a forward-mode derivative nor rules for the transformations of
torch.func. Such calls go to the reference implementation, which PyTorch can look into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map

from ..reference._exporting import is_portable
from ..reference._exporting import portable as portable


def is_transformed(args: Iterable[Any]) -> bool:
    """Whether PyTorch has to see the op's single steps, for these arguments or altogether."""
    if is_portable():
        return True
    if is_in_function_transform():
        return True
    # A graph calls the op that is registered, which refuses tangents.
    return not torch.compiler.is_compiling() and has_tangent(args)


# Keys of a tensor with nothing but memory behind it, and autograd's and autocast's of every tensor.
_PLAIN_KEYS = {"CPU", "CUDA", "ADInplaceOrView", "AutogradCPU", "AutogradCUDA"}
_PLAIN_KEYS |= {"AutocastCPU", "AutocastCUDA"}
_plain: dict[int, bool] = {}  # sets of keys that were seen


def is_unwatched(args: Iterable[Any]) -> bool:
    """Whether PyTorch's dispatcher would do nothing but call the op's implementation, and autograd.

    So it is where no mode, tracer or profiler looks on, and the tensors are plain ones. Then the
    way through the dispatcher can be spared.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._get_tracing_state() is not None
        or torch.autograd._profiler_enabled()
    ):
        return False
    for x in tensors_in(args):
        if type(x) not in (Tensor, torch.nn.Parameter):
            return False
        keys = torch._C._dispatch_keys(x)
        raw = keys.raw_repr()
        found = _plain.get(raw)
        if found is None:
            found = _plain[raw] = _has_plain_keys(keys)
        if not found:
            return False
    return True


def is_recorded(args: Iterable[Any]) -> bool:
    """Whether autograd notes what is done to the tensors among the arguments."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors_in(args))


def _has_plain_keys(keys: torch._C.DispatchKeySet) -> bool:
    names = str(keys).removeprefix("DispatchKeySet(").removesuffix(")")
    return set(names.split(", ")) <= _PLAIN_KEYS


def is_in_function_transform() -> bool:
    """Whether a transformation of torch.func runs."""
    # This form of the question is one that torch.compile can answer while it traces torch.func.
    return isinstance(
        torch._C._functorch.peek_interpreter_stack(), torch._C._functorch.CInterpreter
    )


def is_batched(x: Tensor) -> bool:
    """Whether `x` stands for many tensors: inside torch.func.vmap, or `is_grads_batched`."""
    return torch._C._functorch.is_batchedtensor(x) or torch._C._functorch.is_legacy_batchedtensor(x)


def for_each_in_batch(call: Callable[[Tensor], Any], x: Tensor) -> Any:
    """`call` of every tensor that `x` stands for, its results as tensors that stand for all."""
    if torch._C._functorch.is_batchedtensor(x):
        level = torch._C._functorch.maybe_get_level(x)
        stacked = torch._C._functorch.get_unwrapped(x).movedim(
            torch._C._functorch.maybe_get_bdim(x), 0
        )
        add = torch._C._functorch._add_batch_dim
    else:
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        stacked, add = torch._remove_batch_dim(x, level, 0, 0), torch._add_batch_dim
    found = [call(one) for one in stacked.unbind()]
    return tree_map(lambda *results: add(torch.stack(results), 0, level), *found)


def has_tangent(args: Iterable[Any]) -> bool:
    """Whether an argument carries a forward-mode tangent."""
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(x).tangent is not None for x in tensors_in(args))


def tensors_in(args: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among an op's arguments, those in lists too."""
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (item for item in value if isinstance(item, Tensor))


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """A block in which autocast leaves PyTorch's functions on `device` alone."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
