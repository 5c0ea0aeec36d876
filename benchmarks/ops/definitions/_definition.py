"""The form of a definition, and how its inputs are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

# Names of contenders. "eager" is the published chain of PyTorch calls and the reference of the
# check; "compiled" is torch.compile of the best plain formulation.
EAGER, COMPILED, OURS, SDPA, NATTEN = "eager", "compiled", "attnops", "sdpa", "natten"
CUDNN = "cudnn"

Shape = tuple[int, ...]
Options = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One input of an op: the shape of its map, and the options it is called with."""

    shape: Shape
    options: tuple[tuple[str, Any], ...] = ()


def variant(*shape: int, **options: Any) -> Variant:
    return Variant(shape, tuple(options.items()))


class Draw:
    """Draws the tensors of an input, the same for every contender."""

    def __init__(self, device: torch.device, dtype: torch.dtype, layout: str, seed: int = 1):
        self.device, self.dtype = device, dtype
        self.memory_format = (
            torch.channels_last if layout == "channels_last" else torch.contiguous_format
        )
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        values = torch.randn(shape, generator=self.generator, device=self.device)
        return values.to(self.dtype)

    def map(self, *shape: int) -> Tensor:
        """A map in the wanted layout."""
        return self.normal(*shape).contiguous(memory_format=self.memory_format)

    def structured_map(self, *shape: int) -> Tensor:
        """A map with noise on smooth structure: pooled noise alone makes all anchors alike."""
        coarse = torch.randn(*shape[:2], 8, 8, generator=self.generator, device=self.device)
        x = interpolate(coarse, shape[2:], mode="bilinear")
        for sample in x:  # one at a time: the noise of a whole batch may be gigabytes
            noise = torch.randn(sample.shape, generator=self.generator, device=self.device)
            sample.add_(noise, alpha=0.5)
        return x.to(self.dtype).contiguous(memory_format=self.memory_format)

    def labels(self, classes: int, *shape: int) -> Tensor:
        return torch.randint(classes, shape, generator=self.generator, device=self.device)


def _no_macs(shape: Shape, backward: bool, **options: Any) -> int:
    return 0


@dataclass(frozen=True)
class Definition:
    """An op under test.

    Attributes:
        functions: contender -> function of the inputs and of the variant's options.
        variants: the first ones are those that quick runs take.
        inputs: (draw, shape, **options) -> tensors, those with gradients first.
        elements: (shape, with backward, **options) -> elements that must move, maps once a pass.
        macs: likewise multiply-adds of matrix products or convolutions.
        differentiable: how many of the inputs get gradients; 0: there is no backward.
        layouts: layouts of the map to run.
        unchecked: contenders that compute something a little different, and what.
        quick: how many of the variants quick runs take.
    """

    functions: dict[str, Callable[..., Tensor]]
    variants: Sequence[Variant]
    inputs: Callable[..., list[Tensor]]
    elements: Callable[..., int]
    macs: Callable[..., int] = _no_macs
    differentiable: int = 1
    layouts: Sequence[str] = ("contiguous", "channels_last")
    unchecked: tuple[tuple[str, str], ...] = ()
    quick: int = 1


def size_of(shape: Shape) -> int:
    return torch.Size(shape).numel()
