"""Repairs of Triton's interpreter (3.4 to 3.7), used under TRITON_INTERPRET=1 only.

- Scalars are arrays of one element, and a loop bound becomes an index by int(array), which NumPy
  2.4 refuses: every kernel with a loop over an argument would fail.
- bfloat16 is kept as its 16-bit pattern. `tl.dot` multiplies the patterns as integers, and float32
  is converted to it by cutting bits off where the hardware rounds to nearest even.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def _index(tensor: Any) -> int:
    return int(tensor.handle.data.item())


def _widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16 patterns as the float32 values that they stand for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _round(values: np.ndarray) -> np.ndarray:
    """float32 values as the nearest bfloat16 patterns, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


class _Repaired:
    """The original methods of the interpreter's builder, around which the repairs are put."""

    cast_impl = interpreter.InterpreterBuilder.cast_impl
    create_dot = interpreter.InterpreterBuilder.create_dot
    patch_lang_tensor = staticmethod(interpreter._patch_lang_tensor)


def _cast(builder: Any, source: Any, target: Any) -> Any:
    pair = source.dtype.scalar, target.scalar
    if pair == (tl.bfloat16, tl.float32):
        return interpreter.TensorHandle(_widen(source.data), target.scalar)
    if pair == (tl.float32, tl.bfloat16):
        return interpreter.TensorHandle(_round(source.data), target.scalar)
    return _Repaired.cast_impl(builder, source, target)


def _dot(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
    if a.dtype.scalar == tl.bfloat16:
        a, b = (interpreter.TensorHandle(_widen(x.data), tl.float32) for x in (a, b))
    return _Repaired.create_dot(builder, a, b, *rest)


def _patch_lang_tensor(tensor: Any, scope: Any) -> None:
    _Repaired.patch_lang_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", _index)


def repair() -> None:
    """Put the repairs in place, for every kernel of the process."""
    interpreter.InterpreterBuilder.cast_impl = _cast
    interpreter.InterpreterBuilder.create_dot = _dot
    interpreter._patch_lang_tensor = _patch_lang_tensor
