"""Triton's interpreter, made to round as GPUs do."""

from __future__ import annotations

import numpy as np
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

rounded_twice = InterpreterBuilder.create_fma


def rounded_once(
    builder: InterpreterBuilder, x: TensorHandle, y: TensorHandle, z: TensorHandle
) -> TensorHandle:
    """x * y + z. The interpreter rounds the product too, so that a position such as
    fma(2.5, 0.2, -0.5), 7.5e-9 in float32, becomes 0 there, and a neighbour with a share is not
    read. In float64 the product of float32 numbers is exact.
    """
    if z.data.dtype != np.float32:
        return rounded_twice(builder, x, y, z)
    total = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data
    return TensorHandle(total.astype(np.float32), z.dtype.scalar)


def install() -> None:
    """For every kernel that this process interprets from here on."""
    InterpreterBuilder.create_fma = rounded_once
