"""The user's choice of a backend: for the process, and for a block or function of one thread."""

from __future__ import annotations

import inspect
import os
import threading
import types
import weakref
from collections.abc import Callable, Coroutine, Generator
from functools import wraps
from typing import Any

import torch

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")


class _Thread(threading.local):
    """What a thread is inside of, the innermost block last."""

    def __init__(self) -> None:
        self.entered: list[use_backend] = []


class _Assignment:
    """A choice for the process, made by constructing a `use_backend`.

    While that object lives it may still be entered, or decorate something, which takes the choice
    back. Until then only the thread that made it sees it; it counts for every thread once the
    object is gone, or the choice has been read.
    """

    def __init__(self, backend: str, owner: use_backend | None) -> None:
        self.backend = backend
        self.owner = None if owner is None else weakref.ref(owner)
        self.thread = threading.get_ident()

    def is_settled(self) -> bool:
        return self.owner is None or self.owner() is None


_thread = _Thread()
_lock = threading.Lock()
_assignments = [_Assignment("auto", None)]  # the latest one that the thread sees holds


def _assign(backend: str, owner: use_backend | None) -> None:
    with _lock:
        _assignments.append(_Assignment(backend, owner))
        settled = [i for i, made in enumerate(_assignments) if made.is_settled()]
        if settled:
            del _assignments[: settled[-1]]  # nothing can bring back what stands before


def _take_back(owner: use_backend) -> None:
    with _lock:
        kept = [made for made in _assignments if made.owner is None or made.owner() is not owner]
        _assignments[:] = kept


def current_backend() -> str:
    """The choice made with `use_backend` or ATTNOPS_BACKEND, as this thread sees it."""
    if _thread.entered:
        return _thread.entered[-1].backend
    thread = threading.get_ident()
    with _lock:
        for made in reversed(_assignments):
            if made.is_settled() or made.thread == thread or made.thread is None:
                made.thread = None
                return made.backend
    raise AssertionError("the first assignment is settled")


def check_backend(backend: object) -> None:
    """`backend` is one of `BACKENDS`.

    Raises:
        ValueError: it is not.
    """
    if backend not in BACKENDS:
        expected = ", ".join(map(repr, BACKENDS))
        raise ValueError(f"unknown backend {backend!r}: expected one of {expected}")


class use_backend:
    """Choose the implementation of every op: called, for good; as a context manager, for a block.

    A plain call `use_backend("cpu")` holds for the whole process. `with use_backend("cpu"):` holds
    inside the block, for the thread that runs it, in place of the process's choice;
    `@use_backend("cpu")` does the same for every call of a function, generator function or
    coroutine function. Other threads, and those that the block starts, keep the process's choice.
    One object may be entered any number of times, nested too.

    The choice is read each time an op runs, so graphs made by torch.compile or torch.export
    before obey it as well; a call *inside* a compiled function has no effect. A backward pass runs
    on the backend of its forward pass, whatever is chosen by then, on autograd's threads too. (A
    forward pass that torch.utils.checkpoint repeats for a CUDA device runs on such a thread, and
    takes the process's choice.)

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
        check_backend(backend)
        self.backend = backend
        if not torch.compiler.is_compiling():
            _assign(backend, self)

    def __enter__(self) -> None:
        if not torch.compiler.is_compiling():
            _take_back(self)
            _thread.entered.append(self)

    def __exit__(self, *exception: object) -> None:
        if torch.compiler.is_compiling():
            return
        entered = _thread.entered
        # Coroutines of one thread may leave their blocks in another order than they entered them.
        last = max(i for i, block in enumerate(entered) if block is self)
        del entered[last]

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, run inside a block of this choice each time."""
        if not torch.compiler.is_compiling():
            _take_back(self)
        if inspect.isclass(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                "use_backend decorates functions, generator functions and coroutine functions; "
                f"got {function!r}. Use `with attnops.use_backend(...)` inside it"
            )
        if inspect.isgeneratorfunction(function):

            @wraps(function)
            def run(*args: Any, **kwargs: Any) -> Generator:
                return (yield from _stepwise(self, function(*args, **kwargs)))

        elif inspect.iscoroutinefunction(function):

            @wraps(function)
            async def run(*args: Any, **kwargs: Any) -> Any:
                return await types.coroutine(_stepwise)(self, function(*args, **kwargs))

        else:

            @wraps(function)
            def run(*args: Any, **kwargs: Any) -> Any:
                if torch.compiler.is_compiling():
                    return function(*args, **kwargs)
                with self:
                    return function(*args, **kwargs)

        return run


def _stepwise(choice: use_backend, steps: Generator | Coroutine) -> Generator:
    """Run a generator or coroutine, with `choice` while it runs and without while it waits."""
    resume: Callable[[], Any] = lambda: steps.send(None)  # noqa: E731
    while True:
        try:
            with choice:
                item = resume()
        except StopIteration as done:
            return done.value
        try:
            sent = yield item
        except GeneratorExit:
            with choice:
                steps.close()
            raise
        except BaseException as error:
            resume = lambda error=error: steps.throw(error)  # noqa: E731
        else:
            resume = lambda sent=sent: steps.send(sent)  # noqa: E731


def read_environment() -> None:
    """Take the process's first choice from ATTNOPS_BACKEND; unset and empty mean "auto".

    Raises:
        ValueError: the variable names an unknown backend.
    """
    backend = os.environ.get("ATTNOPS_BACKEND") or "auto"
    if backend not in BACKENDS:
        expected = ", ".join(BACKENDS)
        raise ValueError(f"ATTNOPS_BACKEND={backend!r}: expected one of {expected}")
    _assign(backend, None)
