"""The bench command that runs and since when: the result files that it writes carry both."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Run:
    """A command and when it began, by `time.monotonic`."""

    command: tuple[str, ...] = ()
    began: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        return time.monotonic() - self.began


_current: ContextVar[Run | None] = ContextVar("run", default=None)


@contextmanager
def running(command: Sequence[str]) -> Iterator[None]:
    """Within the block, documents are of `attnops bench COMMAND`."""
    token = _current.set(Run(tuple(command)))
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Run:
    """The command that runs; outside of one, a run that begins now."""
    return _current.get() or Run()
