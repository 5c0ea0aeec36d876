"""Microbenchmarks of single ops: cases made from the definitions, and contenders run on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..arguments import DTYPES
from ..measure.agreement import check_labels, check_same
from ..measure.memory import Case
from .definitions import DEFINITIONS
from .definitions._definition import COMPILED, CUDNN, EAGER, NATTEN, OURS, SDPA, Draw

__all__ = [
    "COMPILED",
    "CUDNN",
    "EAGER",
    "NATTEN",
    "OURS",
    "SDPA",
    "OpCase",
    "OpStep",
    "checked_step",
]

LAYOUTS = ("contiguous", "channels_last")
DIRECTIONS = ("forward", "forward+backward")
FUNCTIONS = {op: dict(definition.functions) for op, definition in DEFINITIONS.items()}
REFERENCES = (EAGER, COMPILED, SDPA, NATTEN, CUDNN)


@dataclass(frozen=True)
class OpCase:
    """An op on one input whose map has `shape`, with the definition's `options`."""

    op: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = "contiguous"
    direction: str = "forward"
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return "-".join([size, *self.words(), self.dtype, self.layout, self.direction])

    def words(self) -> list[str]:
        """The options for people."""
        return [f"{name} {value}" for name, value in self.options]

    @property
    def has_backward(self) -> bool:
        return self.direction == "forward+backward"

    def _bytes(self, has_backward: bool) -> int:
        count = DEFINITIONS[self.op].elements
        elements = count(self.shape, has_backward, **dict(self.options))
        return elements * DTYPES[self.dtype].itemsize

    def moved_bytes(self) -> int:
        """Least traffic: every map once a pass."""
        return self._bytes(self.has_backward)

    def largest_pass_bytes(self) -> int:
        """Least traffic of the pass that moves more, which its maps occupy at a time."""
        forward = self._bytes(False)
        return max(forward, self.moved_bytes() - forward)

    def macs(self) -> int:
        """Multiply-adds of matrix products and convolutions."""
        return DEFINITIONS[self.op].macs(self.shape, self.has_backward, **dict(self.options))

    def inputs(self, device: torch.device, shape: tuple[int, ...] | None = None) -> list[Tensor]:
        draw = Draw(device, DTYPES[self.dtype], self.layout)
        return DEFINITIONS[self.op].inputs(draw, shape or self.shape, **dict(self.options))


class OpStep:
    """A contender on its inputs; called, it returns the output and keeps the gradients."""

    def __init__(self, case: OpCase, contender: str, inputs: list[Tensor]) -> None:
        self.function = FUNCTIONS[case.op][contender]
        if contender == COMPILED:
            torch._dynamo.reset()
            self.function = torch.compile(self.function, dynamic=False)
        self.backward = case.has_backward
        self.options = dict(case.options)
        count = DEFINITIONS[case.op].differentiable if self.backward else 0
        self.leaves = [x.detach().requires_grad_() for x in inputs[:count]]
        self.inputs = [*self.leaves, *inputs[count:]]
        self.grad: Tensor | None = None
        self.gradients: tuple[Tensor, ...] = ()

    def __call__(self) -> Tensor:
        with torch.set_grad_enabled(self.backward):
            out = self.function(*self.inputs, **self.options)
            if not self.backward:
                return out
            if self.grad is None:
                generator = torch.Generator(out.device).manual_seed(2)
                values = torch.randn(out.shape, generator=generator, device=out.device)
                self.grad = torch.empty_like(out).copy_(values)  # equal values in every layout
            self.gradients = torch.autograd.grad(out, self.leaves, self.grad)
        return out.detach()


def checked_step(case: OpCase, contender: str, inputs: list[Tensor]) -> tuple[OpStep, float | None]:
    """A contender that has run once and agreed with "eager", and its relative error.

    The error is None where the definition says that the contender computes something else.

    Raises:
        Disagreement: output or a gradient differs by more than rounding.
    """
    step = OpStep(case, contender, inputs)
    out = step()
    if contender == EAGER:
        return step, 0.0
    if contender in dict(DEFINITIONS[case.op].unchecked):
        step.gradients = ()
        return step, None
    reference = OpStep(case, EAGER, inputs)
    expected = reference()
    check = check_same if out.is_floating_point() else check_labels
    error = check(contender, out, expected)
    pairs = zip(step.gradients, reference.gradients, strict=True)
    for index, (found, wanted) in enumerate(pairs):
        check_same(f"{contender}, gradient of argument {index}", *map(_as_map, (found, wanted)))
    step.gradients = ()
    return step, error


def _as_map(x: Tensor) -> Tensor:
    """Gradients of parameters as one position of many channels."""
    return x if x.dim() > 2 and x.shape[0] * x.shape[2:].numel() > 64 else x.reshape(1, -1, 1)


def memory_case(case: OpCase, contender: str) -> Case:
    """A contender on the CPU, for `memory.measure_cpu`."""
    device = torch.device("cpu")
    step = OpStep(case, contender, case.inputs(device))
    if contender == COMPILED:
        return Case(step, step)
    small = tuple(min(n, 16) for n in case.shape[2:])
    inputs = case.inputs(device, (1, case.shape[1], *small))
    return Case(step, OpStep(case, contender, inputs))


def all_cases(op: str, dtypes: tuple[str, ...] = ("float32",), quick: bool = False) -> list[OpCase]:
    definition = DEFINITIONS[op]
    variants = definition.variants[: definition.quick] if quick else definition.variants
    directions = DIRECTIONS if definition.differentiable else DIRECTIONS[:1]
    return [
        OpCase(op, variant.shape, dtype, layout, direction, variant.options)
        for dtype in dtypes
        for variant in variants
        for layout in definition.layouts
        for direction in directions
    ]


def facts(case: OpCase) -> dict[str, Any]:
    """The fields of a result row that describe the input."""
    return {
        "shape": list(case.shape),
        "dtype": case.dtype,
        "layout": case.layout,
        "direction": case.direction,
        "options": [list(pair) for pair in case.options],
    }


def case_of(op: str, described: dict[str, Any]) -> OpCase:
    """The case that `facts` described, from a row or from JSON."""
    options = tuple(
        (name, tuple(value) if isinstance(value, list) else value)
        for name, value in described["options"]
    )
    shape = tuple(described["shape"])
    names = ("dtype", "layout", "direction")
    return OpCase(op, shape, *(described[name] for name in names), options)
