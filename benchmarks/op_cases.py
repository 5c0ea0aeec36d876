"""Microbenchmarks of single ops: inputs, contenders, and what limits them.

Contenders of an op: "attnops"; "eager", the published chain of PyTorch calls and the reference of
the check; "compiled", torch.compile of that; for the attention also "sdpa".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, scaled_dot_product_attention, softmax

import attnops
from attnops.pyramid_pool import anchor_count

from .agree import check_same
from .apnb_cases import make_input
from .arguments import DTYPES
from .counts import Block
from .memory import Case

SIZES = (1, 3, 6, 8)
ANCHORS = anchor_count(SIZES)
SHAPES = ((1, 256, 96, 96), (1, 2048, 96, 96), (1, 2048, 256, 128))
LAYOUTS = ("contiguous", "channels_last")
DIRECTIONS = ("forward", "forward+backward")
EAGER, COMPILED, OURS, SDPA = "eager", "compiled", "attnops", "sdpa"


def eager_pyramid_pool(x: Tensor) -> Tensor:
    return torch.cat([adaptive_avg_pool2d(x, size).flatten(2) for size in SIZES], dim=2)


def eager_anchor_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    batch, channels, height, width = query.shape
    weights = torch.matmul(query.flatten(2).permute(0, 2, 1), key)
    weights = weights * channels**-0.5
    weights = softmax(weights, dim=-1)
    out = torch.matmul(weights, value.permute(0, 2, 1))
    return out.permute(0, 2, 1).contiguous().view(batch, -1, height, width)


def sdpa_anchor_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Through PyTorch's fused attention with contiguous rows, its fast path."""
    tokens = [t.flatten(2).transpose(1, 2).unsqueeze(1).contiguous() for t in (query, key, value)]
    out = scaled_dot_product_attention(*tokens)
    return out.squeeze(1).transpose(1, 2).reshape(*query.shape)


FUNCTIONS: dict[str, dict[str, Callable[..., Tensor]]] = {
    "pyramid_pool": {
        EAGER: eager_pyramid_pool,
        COMPILED: eager_pyramid_pool,
        OURS: attnops.pyramid_pool,
    },
    "anchor_attention": {
        EAGER: eager_anchor_attention,
        COMPILED: eager_anchor_attention,
        SDPA: sdpa_anchor_attention,
        OURS: attnops.anchor_attention,
    },
}


@dataclass(frozen=True)
class OpCase:
    """An op on one input map `shape` `[B, C, H, W]`."""

    op: str
    shape: tuple[int, int, int, int]
    dtype: str = "float32"
    layout: str = "contiguous"
    direction: str = "forward"

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{size}-{self.dtype}-{self.layout}-{self.direction}"

    @property
    def has_backward(self) -> bool:
        return self.direction == "forward+backward"

    def moved_bytes(self) -> int:
        """Least traffic: maps in and out once per pass; the anchors' side once."""
        batch, channels, height, width = self.shape
        anchors = batch * channels * ANCHORS
        whole = batch * channels * height * width
        if self.op == "pyramid_pool":  # x; then its gradient
            elements = whole + anchors if not self.has_backward else 2 * (whole + anchors)
        else:  # query, out; then grad, query, its gradient; key and value, twice with gradients
            elements = 2 * whole + 2 * anchors
            if self.has_backward:
                elements = 5 * whole + 6 * anchors
        return elements * DTYPES[self.dtype].itemsize

    def macs(self) -> int:
        """Multiply-adds of matrix products: 2, and 5 more in the backward pass."""
        if self.op == "pyramid_pool":
            return 0
        batch, channels, height, width = self.shape
        products = 7 if self.has_backward else 2
        return products * batch * height * width * ANCHORS * channels

    def inputs(self, device: torch.device, shape: tuple[int, ...] | None = None) -> list[Tensor]:
        batch, channels, height, width = shape or self.shape
        block = Block(height, width, batch, channels)
        x = make_input(block, device, DTYPES[self.dtype], self.layout)
        if self.op == "pyramid_pool":
            return [x]
        anchors = eager_pyramid_pool(x)
        # A pixel's product with the anchor it lies in is about C/2: scores of about 2, not 20.
        key = anchors * (4 * channels**-0.5)
        return [x, key, anchors.flip(2).contiguous()]


class OpStep:
    """A contender on its inputs; called, it returns the output and keeps the gradients."""

    def __init__(self, case: OpCase, contender: str, inputs: list[Tensor]) -> None:
        self.function = FUNCTIONS[case.op][contender]
        if contender == COMPILED:
            torch._dynamo.reset()
            self.function = torch.compile(self.function, dynamic=False)
        self.backward = case.has_backward
        self.inputs = [x.detach().requires_grad_(self.backward) for x in inputs]
        self.grad: Tensor | None = None
        self.gradients: tuple[Tensor, ...] = ()

    def __call__(self) -> Tensor:
        with torch.set_grad_enabled(self.backward):
            out = self.function(*self.inputs)
            if not self.backward:
                return out
            if self.grad is None:
                generator = torch.Generator(out.device).manual_seed(2)
                values = torch.randn(out.shape, generator=generator, device=out.device)
                self.grad = torch.empty_like(out).copy_(values)  # equal values in every layout
            self.gradients = torch.autograd.grad(out, self.inputs, self.grad)
        return out.detach()


def checked_step(case: OpCase, contender: str, inputs: list[Tensor]) -> tuple[OpStep, float]:
    """A contender that has run once and agreed with "eager", and its relative error.

    Raises:
        Disagreement: output or a gradient differs by more than rounding.
    """
    step = OpStep(case, contender, inputs)
    out = step()
    if contender == EAGER:
        return step, 0.0
    reference = OpStep(case, EAGER, inputs)
    expected = reference()
    error = check_same(contender, out, expected)
    pairs = zip(step.gradients, reference.gradients, strict=True)
    for index, (found, wanted) in enumerate(pairs):
        check_same(f"{contender}, gradient of argument {index}", found, wanted)
    step.gradients = ()
    return step, error


def memory_case(case: OpCase, contender: str) -> Case:
    """A contender on the CPU, for `memory.measure_cpu`."""
    device = torch.device("cpu")
    step = OpStep(case, contender, case.inputs(device))
    if contender == COMPILED:
        return Case(step, step)
    small = case.inputs(device, (1, case.shape[1], 16, 16))
    return Case(step, OpStep(case, contender, small))


def all_cases(op: str, dtypes: tuple[str, ...] = ("float32",), quick: bool = False) -> list[OpCase]:
    shapes = SHAPES[:1] if quick else SHAPES
    return [
        OpCase(op, shape, dtype, layout, direction)
        for dtype in dtypes
        for shape in shapes
        for layout in LAYOUTS
        for direction in DIRECTIONS
    ]


def facts(case: OpCase) -> dict[str, Any]:
    """The fields of a result row that describe the input."""
    return {
        "shape": list(case.shape),
        "dtype": case.dtype,
        "layout": case.layout,
        "direction": case.direction,
    }
