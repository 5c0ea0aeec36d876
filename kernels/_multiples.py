"""What is known of the lengths of rows in memory, for accesses of 16 bytes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

FACTORS = {"fp32": (1, 4), "fp16": (1, 8), "bf16": (1, 8)}  # what known_factor can return


def known_factor(like: torch.Tensor, *lengths: int) -> int:
    """Elements in 16 bytes if all row lengths are multiples of them, else 1: FACTORS has both."""
    factor = 16 // like.element_size()
    return factor if all(length % factor == 0 for length in lengths) else 1


@triton.jit
def known_multiple(value, MULTIPLE: tl.constexpr):
    """The value, which is a multiple of MULTIPLE, in a form that shows it to the compiler."""
    return value // MULTIPLE * MULTIPLE
