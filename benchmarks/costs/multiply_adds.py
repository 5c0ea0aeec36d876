"""Multiply-adds of a whole network, counted on the meta device: no weights, no computation.

A multiply-add counts once. `executed` runs the network as it is; `published` runs the chains that
the papers' code runs (see `published_chains`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .published_chains import published_chains

Shape = tuple[int, ...]
NORM = 2  # multiply-adds an element of BatchNorm, LayerNorm, GroupNorm
BILINEAR = 4  # an element of a bilinear resize's result
NORMS = ("batch_norm", "layer_norm", "group_norm")


@dataclass
class Count:
    """Multiply-adds by kind: `products` are convolutions and matrix products."""

    products: int = 0
    norms: int = 0
    resizes: int = 0

    def total(self, surroundings: bool) -> int:
        """All of them, or the products alone."""
        return self.products + (self.norms + self.resizes if surroundings else 0)


def _anchor_attention(query: Shape, key: Shape, value: Shape, *_: Any) -> int:
    inner, anchors = key[1:]
    return prod(query) // inner * anchors * (inner + value[1])


def _local_attention(
    query: Shape, key: Shape, value: Shape, kernel_size: list[int], *_: Any
) -> int:
    return prod(kernel_size) * (prod(query) + prod(value))


def _group_attention(theta: Shape, *_: Any) -> int:
    """The inner products, and the factor of every element."""
    return 2 * prod(theta)


def _strip_conv(x: Shape, weights: list[Tensor], *_: Any) -> int:
    return prod(x) * sum(prod(weight.shape[2:]) for weight in weights)


def _depthwise_gelu(x: Shape, weight: Shape, *_: Any) -> int:
    return prod(x) * prod(weight[2:])


def _feed_forward(x: Shape, weights: list[Tensor], *_: Any) -> int:
    return prod(x) // x[1] * sum(weight.numel() for weight in weights)


def nmf(x: Shape, bases: Shape, steps: int, *_: Any) -> int:
    """Steps on both factors and one more on the coefficients, from the softmax of Xᵀ·A.

    A step multiplies X by one factor, that factor's Gram matrix, and the other factor by it.
    """
    batch, channels, positions = x
    rank = bases[2]
    updates = 2 * steps + 1
    gram = (channels + positions) * rank**2
    return batch * ((updates + 1) * channels * positions * rank + updates * gram)


OPS: dict[str, Callable[..., int]] = {
    "anchor_attention": _anchor_attention,
    "local_attention": _local_attention,
    "group_attention": _group_attention,
    "strip_conv": _strip_conv,
    "depthwise_gelu": _depthwise_gelu,
    "feed_forward": _feed_forward,
    "nmf": nmf,
}
# Poolings have no multiplications, `upsample_gate` and `merge_scales` resize and weight.
RESIZING = ("upsample_gate", "merge_scales")
WITHOUT = ("pyramid_pool",)


@dataclass
class _Counter(TorchDispatchMode):
    count: Count = field(default_factory=Count)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        first = result[0] if isinstance(result, (tuple, list)) else result
        if namespace == "attnops":
            self._count_op(name, args, first)
        elif func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
            self.count.products += flops // 2
        elif name.startswith("upsample_bilinear"):
            self.count.resizes += BILINEAR * first.numel()
        elif any(norm in name for norm in NORMS):
            self.count.norms += NORM * first.numel()
        return result

    def _count_op(self, name: str, args: tuple[Any, ...], out: Tensor) -> None:
        if name in OPS:
            shapes = [tuple(x.shape) if isinstance(x, Tensor) else x for x in args]
            self.count.products += OPS[name](*shapes)
        elif name in RESIZING:
            maps = len(args[0]) if isinstance(args[0], (tuple, list)) else 1
            self.count.resizes += BILINEAR * maps * out.numel()
        elif name not in WITHOUT:
            raise NotImplementedError(f"no rule for the multiply-adds of attnops.{name}")


def count(model: nn.Module, size: tuple[int, int], published: bool, auxiliary: bool) -> Count:
    """Multiply-adds of one image of `size` in evaluation, on the meta device.

    Args:
        model: a `SegmentationModel` on the meta device; left in evaluation mode.
        size: (height, width).
        published: the papers' chains instead of the fused forms.
        auxiliary: also the heads whose names start with `aux`, on the backbone's third map.
    """
    images = torch.empty(1, 3, *size, device="meta")
    maps: list[Tensor] = []
    hook = model.backbone.register_forward_hook(lambda module, args, out: maps.extend(out))
    counter = _Counter()
    chains = published_chains(model) if published else nullcontext()
    try:
        with chains, _resizes_whole(), torch.no_grad(), counter:
            model.eval()(images)["out"]  # made when it is read
            if auxiliary:
                for name, child in model.named_children():
                    if name.startswith("aux"):
                        child(maps[2])
    finally:
        hook.remove()
    return counter.count


@contextmanager
def _resizes_whole() -> Iterator[None]:
    """Within the block, a resize is one op; where determinism is asked for, it is taken apart."""
    asked = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(asked, warn_only=warns)


def parameters(model: nn.Module) -> tuple[int, int]:
    """Numbers of parameters with and without auxiliary heads."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    without = sum(size for name, size in sizes.items() if not name.startswith("aux"))
    return sum(sizes.values()), without
