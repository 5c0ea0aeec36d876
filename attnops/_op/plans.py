"""What was decided for a call, kept for those that look the same.

A call looks the same if its tensors have the same shapes, strides, dtypes, devices, dispatch keys
and `requires_grad`, all start on 16 bytes, the other arguments are equal, and so is the state of
PyTorch and attnops on which a decision may rest (`_state`). The second such call is planned, so
that calls on ever new shapes pay little for it; from the third on the plan runs. What a plan holds
are numbers and compiled code, no tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._choice import current_backend
from ..reference._exporting import wants_portable
from . import transforms
from .arguments import emptied, filled, take_apart
from .tape import recording

MOST = 512  # calls that are told apart at a time, for each op and pass
_ALIGNED = 16  # bytes; kernels are compiled for pointers that start on them
# Types of devices on which calls are planned: where a call takes less time than its preparation.
DEVICES = {"cuda"}

_Guards = getattr(torch._C._dynamo.guards, "TensorGuards", None)


class _Noting(threading.local):
    """What ops did within a call of a public function, while that is looked into."""

    calls: list[tuple[Any, tuple[Any, ...], tuple[Tensor, ...]]] | None = None
    plan: Any = None  # of the op's last call

    def note(self, op: Any, args: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        if self.calls is not None:
            self.calls.append((op, args, outputs))


noting = _Noting()


class Look:
    """How calls look that are the same, how often it was seen, and the plan for them.

    `plan` is None before there is one; `is_settled` says that there will be no other.
    """

    __slots__ = ("is_settled", "matches", "plan", "seen")

    def __init__(self, tensors: list[Tensor]) -> None:
        guards = _Guards(
            *tensors,
            dynamic_dims_sizes=[list(x.shape) for x in tensors],
            dynamic_dims_strides=[list(x.stride()) for x in tensors],
        )
        self.matches = guards.check
        self.seen = 0
        self.plan: Any = None
        self.is_settled = False

    def is_due(self) -> bool:
        """Whether this call is the one to plan by; counts it."""
        self.seen += 1
        return not self.is_settled and self.seen > 1

    def settle(self, plan: Any) -> None:
        """Keep a plan; None: there is none for such calls."""
        self.plan, self.is_settled = plan, True


class Call:
    """A call that may be planned: how it looks, its tensors and their addresses."""

    __slots__ = ("addresses", "look", "tensors")

    def __init__(self, look: Look, tensors: list[Tensor], addresses: list[int]) -> None:
        self.look, self.tensors, self.addresses = look, tensors, addresses

    def plan(self, function: Callable[[Any], Any], args: Sequence[Any], backend: str) -> Any:
        """function(args), the work of `backend`; a tape of it becomes the plan for such calls."""
        with recording(self.tensors) as recorder:
            outputs = function(filled(emptied(tuple(args), []), recorder.tensors))
        tape = recorder.plan(outputs)
        self.look.settle(None if tape is None else (tape, backend))
        return outputs


class Plans:
    """The looks of the calls of one function."""

    def __init__(self) -> None:
        self._looks: dict[tuple[Any, ...], list[Look]] = {}
        self._count = 0
        _made.append(self)

    def forget(self) -> None:
        """Take all calls for new ones."""
        self._looks.clear()
        self._count = 0

    def find(self, values: Sequence[Any], *also: Any) -> Call | None:
        """The call of `values`, told apart by `also` as well; None: it is not to be planned.

        Never to be called while a graph is traced.
        """
        first = values[0] if values else None
        if type(first) in (list, tuple) and first:
            first = first[0]
        if not isinstance(first, Tensor) or first.device.type not in DEVICES or _is_watched():
            return None
        tensors: list[Tensor] = []
        key: list[Any] = [*also, *_state(first.device)]
        if not take_apart(values, tensors, key):
            return None
        key.append(first.shape)
        looks = self._looks.get(hashable := tuple(key), ())
        for look in looks:
            if look.matches(*tensors):
                break
        else:
            look = self._add(hashable, tensors)
            if look is None:
                return None
        addresses, together = [], 0
        for x in tensors:
            addresses.append(address := x.data_ptr())
            together |= address
        return None if together % _ALIGNED else Call(look, tensors, addresses)

    def _add(self, key: tuple[Any, ...], tensors: list[Tensor]) -> Look | None:
        if _Guards is None or not transforms.is_unwatched(tensors):
            return None
        device = tensors[0].device
        if tensors[0].numel() == 0 or any(x.device != device for x in tensors):
            return None
        if device.index != _current_index(device):  # where a plan would launch
            return None
        if self._count >= MOST:
            self.forget()
        self._count += 1
        look = Look(tensors)
        self._looks.setdefault(key, []).append(look)
        return look


_made: list[Plans] = []


def forget() -> None:
    """Take all calls of all functions for new ones, as after a change of what is registered."""
    for plans in _made:
        plans.forget()


def _is_watched() -> bool:
    """Whether something looks on that neither the tensors' dispatch keys nor the state show."""
    return (
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_function_stack() > 0
        or torch.autograd._profiler_enabled()
        or wants_portable()
    )


def _state(device: torch.device) -> tuple[Any, ...]:
    """What else decides: who is to run, and how PyTorch is set."""
    kind = device.type
    autocast = torch.is_autocast_enabled(kind)
    return (
        current_backend(),
        torch.is_grad_enabled(),
        torch._C._get_deterministic_algorithms(),
        torch._C._get_fp32_precision_getter("cuda", "matmul"),
        torch.get_autocast_dtype(kind) if autocast else None,
        _current_index(device),
    )


def _current_index(device: torch.device) -> int | None:
    """The index of the current device of a type."""
    return torch._C._cuda_getDevice() if device.type == "cuda" else device.index
