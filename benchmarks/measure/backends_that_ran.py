"""Which implementations a call of attnops really ran on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from attnops import _dispatch
from attnops._op import plans


@contextmanager
def recorded_backends() -> Iterator[dict[str, str]]:
    """Within the block, note op -> backend of every op that runs.

    It listens where an op selects its implementation, so a silent fall-back of "auto" shows. Calls
    that look like earlier ones would not get there: what was planned for them is forgotten.
    """
    plans.forget()
    used: dict[str, str] = {}
    select = _dispatch.select

    def listen(op: str, device: torch.device, *args: Any) -> _dispatch.Implementation:
        implementation = select(op, device, *args)
        used[op] = implementation.backend
        return implementation

    _dispatch.select = listen
    try:
        yield used
    finally:
        _dispatch.select = select


def in_words(used: dict[str, str]) -> str:
    """{"a": "cpu", "b": "cpu"} -> "cpu"; otherwise "a: cpu, b: reference"."""
    if len(set(used.values())) <= 1:
        return next(iter(used.values()), "")
    return ", ".join(f"{op}: {backend}" for op, backend in sorted(used.items()))
