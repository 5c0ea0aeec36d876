"""Which implementation runs an op: the registry, the user's choice, and the reasons.

Implementations (`attnops.kernels`, `attnops._backends`) call `register` when they are
loaded; nothing in here knows them. An op asks `select` each time it runs, on real
tensors, so a choice made with `use_backend` also holds for compiled and exported graphs that were
traced before.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ._choice import BACKENDS, current_backend
from ._layout import is_channels_inner

logger = logging.getLogger("attnops")

# How traces name a backend (see `_op`): strides that no copy of an empty tensor has.
CODES = {name: 1000 + index for index, name in enumerate(BACKENDS[1:], start=1)}
_BACKEND_OF = {code: name for name, code in CODES.items()}

# What "auto" tries, in this order, for tensors of a device type. Other devices get the reference.
PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("triton", "cuda", "reference")}

# Where "cuda" goes before "triton": (op, layout, "float32" or "half", "forward" or "training"; that
# is forward and backward, which stay together). By a measurement among the committed results where
# there is one, else by the static report on sm_90: `attnops bench evidence` prints the table, and a
# test compares.
CUDA_FIRST = frozenset(
    {
        ("pyramid_pool", "channels_last", "float32", "training"),
        ("pyramid_pool", "channels_last", "half", "training"),
        ("pyramid_pool", "contiguous", "float32", "forward"),
        ("pyramid_pool", "contiguous", "float32", "training"),
        ("pyramid_pool", "contiguous", "half", "training"),
    }
)
_CUDA_ORDER = ("cuda", "triton", "reference")


class BackendError(ValueError, RuntimeError):
    """A forced backend is not there, or cannot run the given input. The message says why."""


class BackendNotInstalled(ImportError):
    """What a backend needs was never installed here, so its absence is no fault."""


class IncompleteBackend(ImportError):
    """A backend was loaded, but not for `ops`."""

    def __init__(self, ops: Sequence[str], message: str) -> None:
        super().__init__(message)
        self.ops = tuple(ops)


@dataclass(frozen=True)
class Implementation:
    """One op on one backend.

    `refuse` gets the op's forward arguments and returns why it cannot run them, or None.
    `backward` is None for ops without a gradient.
    """

    op: str
    backend: str
    forward: Callable[..., Any]
    backward: Callable[..., Any] | None
    refuse: Callable[..., str | None]


@dataclass(frozen=True)
class Availability:
    """Whether a backend can be used for an op here; `reason` says why not. True or false itself."""

    available: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.available


@dataclass
class _Registry:
    implementations: dict[tuple[str, str], Implementation] = field(default_factory=dict)
    missing: dict[tuple[str, str], str] = field(default_factory=dict)  # (op, backend) -> why
    ops: dict[str, bool] = field(default_factory=dict)  # -> whether it has a gradient
    said: set[tuple[str, str, str]] = field(default_factory=set)


_registry = _Registry()


def add_op(op: str, differentiable: bool) -> None:
    """Make an op known, so that `backends()` lists it before any implementation registers."""
    _registry.ops[op] = differentiable


def is_differentiable(op: str) -> bool:
    """Whether implementations of `op` need a backward."""
    return _registry.ops[op]


def register(
    op: str,
    backend: str,
    *,
    forward: Callable[..., Any],
    backward: Callable[..., Any] | None,
    refuse: Callable[..., str | None],
) -> None:
    """Register the implementation of `op` for `backend`; see `Implementation`."""
    if op not in _registry.ops:
        raise ValueError(f"unknown op {op!r}; known: {', '.join(_registry.ops)}")
    if backend not in BACKENDS[1:]:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS[1:])}")
    implementation = Implementation(op, backend, forward, backward, refuse)
    _registry.implementations[op, backend] = implementation


def report_missing(backend: str, reason: str, ops: Iterable[str] | None = None) -> None:
    """Note why `backend` could not be loaded for `ops`; None: for every op."""
    for op in _registry.ops if ops is None else ops:
        _registry.missing[op, backend] = reason


def _why_not(op: str, backend: str) -> str:
    return _registry.missing.get((op, backend), f"{op} has no {backend} implementation")


def _availability(op: str, backend: str) -> Availability:
    if (op, backend) not in _registry.implementations:
        return Availability(False, _why_not(op, backend))
    interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if backend in ("triton", "cuda") and not interpreted and not torch.cuda.is_available():
        return Availability(False, "no CUDA device is visible")
    return Availability(True)


def select(op: str, device: torch.device, *args: Any) -> Implementation:
    """The implementation that runs `op` on `args` under the current choice.

    Raises:
        BackendError: a backend is forced that is missing or refuses this input.
    """
    choice = current_backend()
    if choice != "auto":
        implementation = _registry.implementations.get((op, choice))
        reason = _why_not(op, choice) if implementation is None else implementation.refuse(*args)
        if implementation is None or reason is not None:
            raise BackendError(
                f"attnops.{op}: the backend {choice!r} is forced, but cannot run this input: "
                f"{reason}. Use attnops.use_backend('auto') to fall back, or 'reference'."
            )
        return implementation
    return _automatic(op, device, *args)


def gpu_order(op: str, x: Tensor) -> tuple[str, ...]:
    """Backends to try for `op` on a map `x` on a GPU; `CUDA_FIRST` says which come first."""
    order = PREFERENCE["cuda"]
    if not any(op == entry[0] for entry in CUDA_FIRST):
        return order
    layout = "channels_last" if is_channels_inner(x) else "contiguous"
    dtype = "half" if x.element_size() == 2 else "float32"
    passes = "training" if x.requires_grad else "forward"
    return _CUDA_ORDER if (op, layout, dtype, passes) in CUDA_FIRST else order


def _automatic(op: str, device: torch.device, *args: Any) -> Implementation:
    if device.type == "cuda":
        order = gpu_order(op, args[0] if isinstance(args[0], Tensor) else args[0][0])
    else:
        order = PREFERENCE.get(device.type, ("reference",))
    for backend in order:
        implementation = _registry.implementations.get((op, backend))
        reason = _why_not(op, backend) if implementation is None else implementation.refuse(*args)
        if implementation is not None and reason is None:
            return implementation
        if (op, backend, reason) not in _registry.said:
            _registry.said.add((op, backend, reason))
            logger.debug("%s: not on backend %r: %s", op, backend, reason)
    raise BackendError(f"attnops.{op}: no backend can run this input on {device}")


def implementation_of(op: str, code: int) -> Implementation | None:
    """The implementation that a forward pass noted as `code`; None where that was lost."""
    return _registry.implementations.get((op, _BACKEND_OF.get(code)))


def select_again(op: str, device: torch.device, *args: Any) -> Implementation:
    """The implementation for a backward pass that does not know its forward's.

    What `select` would choose now, but no error where a forced backend cannot run the input: the
    forward ran somewhere else, so the gradient must not fail.
    """
    try:
        return select(op, device, *args)
    except BackendError:
        return _automatic(op, device, *args)


def reference_of(op: str) -> Implementation:
    """The implementation in plain PyTorch."""
    return _registry.implementations[op, "reference"]


def backends() -> dict[str, dict[str, Availability]]:
    """What can be used here: for each op and backend whether it is available and, if not, why.

    Example:
        >>> import attnops
        >>> bool(attnops.backends()["pyramid_pool"]["reference"])
        True
    """
    return {
        op: {backend: _availability(op, backend) for backend in BACKENDS[1:]}
        for op in _registry.ops
    }
