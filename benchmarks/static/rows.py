"""Rows of the static report: an input and pass, with the launches that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..ops.cases import OpCase, facts

COPY_BYTES_A_US = 4.3e6  # measured on an H200
# Multiply-adds a microsecond of the unit that can do them: tensor cores for products (float32 in
# three TF32 products), else float32 pipes.
TENSOR = {"bfloat16": 989e6 / 2, "float16": 989e6 / 2, "float32": 495e6 / 2 / 3}
PIPES = 67e6 / 2
PRODUCTS = ("anchor_attention", "feed_forward", "local_attention", "nmf")


def floor_us(case: OpCase, direction: str) -> float:
    """Time that bytes or multiply-adds of one pass need at least."""

    def cost(of: str) -> tuple[int, int]:
        one = OpCase(case.op, case.shape, case.dtype, case.layout, of, case.options)
        return one.moved_bytes(), one.macs()

    moved, macs = cost("forward")
    if direction == "backward":
        both = cost("forward+backward")
        moved, macs = both[0] - moved, both[1] - macs
    rate = TENSOR[case.dtype] if case.op in PRODUCTS else PIPES
    return max(moved / COPY_BYTES_A_US, macs / rate)


def row_of(
    case: OpCase,
    direction: str,
    backend: str,
    kernels: Sequence[dict[str, Any]],
    aten: Sequence[str],
) -> dict[str, Any]:
    """A row, from the columns of every launch and the names of PyTorch's own kernels."""
    floor = floor_us(case, direction)
    row = {"op": case.op, **facts(case), "pass": direction, "backend": backend, "aten": list(aten)}
    del row["direction"]
    row |= {"floor_us": round(floor, 2), "launches": len(kernels)}
    if all("low_us" in kernel for kernel in kernels):
        row["low_us"] = round(max(floor, sum(k["low_us"] for k in kernels)), 2)
        row["high_us"] = round(max(floor, sum(k["high_us"] for k in kernels)), 2)
        spent = sum(k["warp_instructions"] * k["programs"] * k["threads"] for k in kernels)
        row["instructions_an_element"] = round(spent / torch.Size(case.shape).numel(), 1)
    return row | {"kernels": list(kernels)}
