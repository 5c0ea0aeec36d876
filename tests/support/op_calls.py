"""One call of every op: the tensors it is differentiable in, and the function of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

import attnops

LAYOUTS = ("contiguous", "channels_last")


@dataclass(frozen=True)
class OpCall:
    """`call(attnops or attnops.reference, *tensors)`, with tensors of `shapes`.

    `op` is the op that runs; `positive`: the tensors must not be negative.
    """

    op: str
    shapes: tuple[tuple[int, ...], ...]
    call: Callable[..., Tensor]
    positive: bool = False

    def tensors(
        self, layout: str = "contiguous", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        made = [torch.randn(s, generator=generator, dtype=dtype) for s in self.shapes]
        if self.positive:
            made = [t.abs() + 0.1 for t in made]
        if layout == "contiguous":
            return made
        return [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in made]


TARGET = torch.tensor([0, 2, 1, 255, 1, 0, 3]).repeat(2, 5, 1)
MAP = (2, 4, 5, 7)


def _strips(module: ModuleType, x: Tensor, weight: Tensor, bias: Tensor, *parts: Tensor) -> Tensor:
    row, column, shift = parts
    return module.strip_conv(x, weight, bias, [((row, shift), (column, None))])


def _two_maps(module: ModuleType, first: Tensor, second: Tensor, *logits: Tensor) -> Tensor:
    return module.merge_scales([first, second], *logits)


CALLS = {
    "pyramid_pool": OpCall("pyramid_pool", (MAP,), lambda m, x: m.pyramid_pool(x, (1, 2, 3))),
    "pyramid_pool max": OpCall(
        "pyramid_pool", (MAP,), lambda m, x: m.pyramid_pool(x, (1, 2, 3), "max")
    ),
    "anchor_attention": OpCall(
        "anchor_attention",
        (MAP, (2, 4, 6), (2, 3, 6), (2, 6)),
        lambda m, q, k, v, b: m.anchor_attention(q, k, v, bias=b),
    ),
    "local_attention": OpCall(
        "local_attention", (MAP, MAP, (2, 3, 5, 7)), lambda m, *x: m.local_attention(*x, 3, 2)
    ),
    "local_attention mask": OpCall(
        "local_attention",
        (MAP, MAP, MAP),
        lambda m, *x: m.local_attention(*x, (3, 5), 1, 0.5, "mask"),
    ),
    "strip_conv": OpCall(
        "strip_conv", (MAP, (4, 1, 3, 5), (4,), (4, 1, 1, 3), (4, 1, 5, 1), (4,)), _strips
    ),
    "depthwise_gelu": OpCall(
        "depthwise_gelu", (MAP, (4, 1, 3, 3), (4,)), lambda m, *x: m.depthwise_gelu(*x)
    ),
    "feed_forward": OpCall(
        "feed_forward",
        (MAP, (6, 4, 1, 1), (6, 1, 3, 3), (3, 6, 1, 1), (6,), (6,), (3,)),
        lambda m, *x: m.feed_forward(*x),
    ),
    "nmf": OpCall("nmf", ((2, 5, 9), (2, 5, 3)), lambda m, x, a: m.nmf(x, a, 2)[1], positive=True),
    "nmf one_step": OpCall(
        "nmf",
        ((2, 5, 9), (2, 5, 3)),
        lambda m, x, a: m.nmf(x, a, 2, grad="one_step")[1],
        positive=True,
    ),
    "upsample_gate": OpCall(
        "upsample_gate", ((2, 4, 2, 3), MAP), lambda m, *x: m.upsample_gate(*x)
    ),
    "merge_scales": OpCall("merge_scales", (MAP, (2, 4, 3, 4), (2, 2, 6, 5)), _two_maps),
    "merge_scales mean": OpCall(
        "merge_scales", (MAP, (2, 4, 3, 4)), lambda m, *x: m.merge_scales(x, reduce="mean")
    ),
    "merge_scales max": OpCall(
        "merge_scales", (MAP, (2, 4, 3, 4)), lambda m, *x: m.merge_scales(x, reduce="max")
    ),
    "group_attention": OpCall(
        "group_attention", (MAP, MAP, MAP), lambda m, *x: m.group_attention(*x, 2)
    ),
    "upsample_cross_entropy": OpCall(
        "upsample_cross_entropy",
        ((2, 4, 2, 3), (4,)),
        lambda m, x, w: m.upsample_cross_entropy(x, TARGET.to(x.device), w),
    ),
}


class CallModule(nn.Module):
    """One call of the op `name`, as a module of its tensors."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *tensors: Tensor) -> Tensor:
        return CALLS[self.name].call(attnops, *tensors)
