"""Whether what is traced will run elsewhere than in PyTorch, as an ONNX file for example."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_portable: ContextVar[bool] = ContextVar("portable", default=False)


def is_portable() -> bool:
    """Whether only steps are wanted that every runtime knows."""
    if torch.onnx.is_in_onnx_export():
        return True
    return not torch.compiler.is_dynamo_compiling() and wants_portable()


def wants_portable() -> bool:
    """Whether a block of `portable` is open."""
    return _portable.get()


@contextmanager
def portable() -> Iterator[None]:
    """Let attnops' ops be traced as steps that every runtime knows, as torch.onnx.export does.

    Resizes are kept whole; pooling to a grid becomes products with matrices.
    """
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)
