"""Which implementation runs an op: the registry, the user's choice, and the reasons.

Implementations (`attnops.kernels`, `attnops._backends`) call `register` when they are
loaded; nothing in here knows them. An op asks `select` each time it runs, on real
tensors, so a choice made with `use_backend` also holds for compiled and exported graphs that were
traced before.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

logger = logging.getLogger("attnops")

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")
CODES = {name: code for code, name in enumerate(BACKENDS)}

# What "auto" tries, in this order, for tensors of a device type. Other devices get the reference.
PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("triton", "cuda", "reference")}


class BackendError(ValueError, RuntimeError):
    """A forced backend is not there, or cannot run the given input. The message says why."""


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
    missing: dict[str, str] = field(default_factory=dict)  # backend -> why it was not loaded
    ops: list[str] = field(default_factory=list)
    said: set[tuple[str, str, str]] = field(default_factory=set)
    choice: str = "auto"


_registry = _Registry()


def add_op(op: str) -> None:
    """Make an op known, so that `backends()` lists it before any implementation registers."""
    _registry.ops.append(op)


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


def report_missing(backend: str, reason: str) -> None:
    """Note why `backend` could not be loaded."""
    _registry.missing[backend] = reason


def _why_not(op: str, backend: str) -> str:
    return _registry.missing.get(backend, f"{op} has no {backend} implementation")


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
    choice = _registry.choice
    if choice != "auto":
        implementation = _registry.implementations.get((op, choice))
        reason = _why_not(op, choice) if implementation is None else implementation.refuse(*args)
        if implementation is None or reason is not None:
            raise BackendError(
                f"attnops.{op}: the backend {choice!r} is forced, but cannot run this input: "
                f"{reason}. Use attnops.use_backend('auto') to fall back, or 'reference'."
            )
        return implementation
    for backend in PREFERENCE.get(device.type, ("reference",)):
        implementation = _registry.implementations.get((op, backend))
        reason = _why_not(op, backend) if implementation is None else implementation.refuse(*args)
        if implementation is not None and reason is None:
            return implementation
        if (op, backend, reason) not in _registry.said:
            _registry.said.add((op, backend, reason))
            logger.debug("%s: not on backend %r: %s", op, backend, reason)
    raise BackendError(f"attnops.{op}: no backend can run this input on {device}")


def implementation_of(op: str, code: int) -> Implementation:
    """The implementation that a forward pass noted as `code`, for its backward pass."""
    return _registry.implementations[op, BACKENDS[code]]


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


def _checked(backend: str) -> str:
    if backend not in BACKENDS:
        expected = ", ".join(map(repr, BACKENDS))
        raise ValueError(f"unknown backend {backend!r}: expected one of {expected}")
    return backend


class use_backend:
    """Choose the implementation of every op: called, for good; as a context manager, for a block.

    The choice holds for the whole process, all threads. It is read each time an op runs, so graphs
    made by torch.compile or torch.export before obey it as well; a call *inside* a compiled
    function has no effect. A backward pass runs on the backend of its forward pass, whatever is
    chosen by then.

    Args:
        backend: "auto" (the best that can run the input), "reference" (plain PyTorch), "cpu"
            (C++), "triton" or "cuda" (CUDA C++). A forced backend that cannot run an input
            raises `BackendError` with the reason.

    Raises:
        ValueError: unknown backend.

    Example:
        >>> import torch, attnops
        >>> with attnops.use_backend("reference"):
        ...     attnops.pyramid_pool(torch.ones(1, 2, 5, 5)).shape
        torch.Size([1, 2, 110])
    """

    def __init__(self, backend: str) -> None:
        checked = _checked(backend)
        self._previous = None
        if not torch.compiler.is_compiling():
            self._previous, _registry.choice = _registry.choice, checked

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None and not torch.compiler.is_compiling():
            _registry.choice = self._previous


def current_backend() -> str:
    """The choice made with `use_backend` or ATTNOPS_BACKEND."""
    return _registry.choice


def read_environment() -> None:
    """Take the first choice from ATTNOPS_BACKEND.

    Raises:
        ValueError: the variable names an unknown backend.
    """
    backend = os.environ.get("ATTNOPS_BACKEND", "auto")
    if backend not in BACKENDS:
        expected = ", ".join(BACKENDS)
        raise ValueError(f"ATTNOPS_BACKEND={backend!r}: expected one of {expected}")
    _registry.choice = backend
