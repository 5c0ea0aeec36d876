"""Repairs of Triton's interpreter (as it is in 3.6), used under TRITON_INTERPRET=1 only.

- Scalars are arrays of one element, and a loop bound becomes an index by int(array), which NumPy
  2.4 refuses: every kernel with a loop over an argument would fail.
- Speed: scans with a function of one's own go element by element through Python (here: slices
  across the axis, in the same order); every call of a device function patches the language anew
  (here: once a launch and module); overflow checks are computed and then dropped, unless
  debugging (here: not computed). Tests run about fifty times faster.
- bfloat16 is kept as its 16-bit pattern. `tl.dot` multiplies the patterns as integers, and float32
  is converted to it by cutting bits off where the hardware rounds to nearest even.
- TF32 products: `tl.dot` takes its operands whole. Tensor cores take 19 bits of them, and their
  sums do not depend on which operand comes first, as those of a BLAS do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton._C.libtriton import ir
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


try:
    _cast_impl = interpreter.InterpreterBuilder.cast_impl
    _create_dot = interpreter.InterpreterBuilder.create_dot
    _original_patch_lang = interpreter._patch_lang
    _original_patch_lang_tensor = interpreter._patch_lang_tensor
    _builder = interpreter.interpreter_builder
    _scan_operations = interpreter.ScanOps
except AttributeError as error:
    raise ImportError(
        f"the interpreter of triton {triton.__version__} is built differently from that of 3.6 "
        f"({error}); unset TRITON_INTERPRET or use another version"
    ) from error


def _cast(builder: Any, source: Any, target: Any) -> Any:
    pair = source.dtype.scalar, target.scalar
    if pair == (tl.bfloat16, tl.float32):
        return interpreter.TensorHandle(_widen(source.data), target.scalar)
    if pair == (tl.float32, tl.bfloat16):
        return interpreter.TensorHandle(_round(source.data), target.scalar)
    return _cast_impl(builder, source, target)


def _dot(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
    if a.dtype.scalar == tl.bfloat16:
        a, b = (interpreter.TensorHandle(_widen(x.data), tl.float32) for x in (a, b))
    elif a.dtype.scalar == tl.float32 and rest[1] == ir.INPUT_PRECISION.TF32:
        d = rest[0]
        product = np.matmul(*(_as_tf32(x.data).astype(np.float64) for x in (a, b)))
        return interpreter.TensorHandle(product.astype(np.float32) + d.data, d.dtype.scalar)
    return _create_dot(builder, a, b, *rest)


def _as_tf32(values: np.ndarray) -> np.ndarray:
    """float32 values as tensor cores take them: without the last 13 bits."""
    bits = np.ascontiguousarray(values).view(np.uint32) & np.uint32(0xFFFFE000)
    return bits.view(np.float32)


def _scan(operation: Any, operands: list[Any]) -> list[Any]:
    axis = operation.axis
    columns = [np.moveaxis(x.handle.data, axis, 0) for x in operands]
    results = [np.empty_like(column) for column in columns]

    def slices(arrays: list[np.ndarray], i: int) -> tuple[Any, ...]:
        return tuple(
            operation.to_tensor(a[i], x.dtype) for a, x in zip(arrays, operands, strict=True)
        )

    for i in range(columns[0].shape[0]):
        step = slices(columns, i)
        if i > 0:
            step = operation.combine_fn.fn(*slices(results, i - 1), *step)
            step = step if isinstance(step, (tuple, tl.core.tuple)) else (step,)
        for result, x in zip(results, step, strict=True):
            result[i] = x.handle.data
    return [
        operation.to_tensor(np.ascontiguousarray(np.moveaxis(r, 0, axis)), x.dtype)
        for r, x in zip(results, operands, strict=True)
    ]


_patched_modules: set[int] = set()  # of the running launch


def _patch_lang(kernel: Any) -> Any:
    _patched_modules.clear()
    _patched_modules.add(id(kernel.__globals__))
    return _original_patch_lang(kernel)


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    module = id(function.fn.__globals__)
    if module not in _patched_modules:
        _original_patch_lang(function.fn)
        _patched_modules.add(module)
    return function.rewrite()(*args, **kwargs)


def _patch_lang_tensor(tensor: Any, scope: Any) -> None:
    _original_patch_lang_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", _index)


def repair() -> None:
    """Put the repairs in place, for every kernel of the process."""
    interpreter.InterpreterBuilder.cast_impl = _cast
    interpreter.InterpreterBuilder.create_dot = _dot
    _scan_operations.generic_scan = _scan
    interpreter.InterpretedFunction.__call__ = _call
    if not _builder.options.debug:
        _builder.options = replace(_builder.options, sanitize_overflow=False)
    interpreter._patch_lang = _patch_lang
    interpreter._patch_lang_tensor = _patch_lang_tensor
