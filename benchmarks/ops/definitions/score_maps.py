"""The ops on score maps: merging scales, labels, losses."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

import attnops

from ._definition import COMPILED, EAGER, OURS, Definition, Draw, Shape, size_of, variant


def eager_merge(first: Tensor, *rest: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Resize every map, weigh it, add it."""
    *others, logits = rest
    weights = logits.softmax(dim=1)
    out = 0
    for index, scores in enumerate((first, *others)):
        resized = interpolate(scores, logits.shape[2:], mode="bilinear", align_corners=True)
        out = out + weights[:, index : index + 1] * resized
    return out


def fused_merge(*tensors: Tensor, sides: tuple[int, ...]) -> Tensor:
    return attnops.merge_scales(tensors[:-1], tensors[-1])


def _merge_inputs(draw: Draw, shape: Shape, sides: tuple[int, ...]) -> list[Tensor]:
    batch, classes, height, width = shape
    maps = [draw.map(batch, classes, side, side) for side in (height, *sides)]
    return [*maps, draw.map(batch, len(maps), height, width)]


def _merge_elements(shape: Shape, backward: bool, sides: tuple[int, ...]) -> int:
    """The maps, the logits and the result; with gradients, grad and everything twice more."""
    batch, classes, height, width = shape
    small = batch * classes * sum(side**2 for side in sides)
    logits = batch * (1 + len(sides)) * height * width
    inputs = size_of(shape) + small + logits
    return 3 * inputs + 2 * size_of(shape) if backward else inputs + size_of(shape)


def eager_loss(logits: Tensor, target: Tensor, factor: int) -> Tensor:
    full = interpolate(logits, target.shape[1:], mode="bilinear")
    return cross_entropy(full, target, ignore_index=255).view(1, 1, 1)


def fused_loss(logits: Tensor, target: Tensor, factor: int) -> Tensor:
    return attnops.upsample_cross_entropy(logits, target).view(1, 1, 1)


def _loss_inputs(draw: Draw, shape: Shape, factor: int) -> list[Tensor]:
    batch, classes, height, width = shape
    return [draw.map(*shape), draw.labels(classes, batch, factor * height, factor * width)]


def _loss_elements(shape: Shape, backward: bool, factor: int) -> int:
    """The logits, and their gradient; two 4-byte elements a label, and as many statistics."""
    labels = shape[0] * shape[2] * shape[3] * factor**2
    return 3 * size_of(shape) + 8 * labels if backward else size_of(shape) + 5 * labels


def eager_argmax(logits: Tensor, factor: int) -> Tensor:
    size = [factor * side for side in logits.shape[2:]]
    return interpolate(logits, size, mode="bilinear").argmax(dim=1)


def fused_argmax(logits: Tensor, factor: int) -> Tensor:
    size = [factor * side for side in logits.shape[2:]]
    return attnops.upsample_argmax(logits, size)


def _argmax_elements(shape: Shape, backward: bool, factor: int) -> int:
    return size_of(shape) + 2 * shape[0] * shape[2] * shape[3] * factor**2


_SIZES: tuple[Any, ...] = (
    variant(1, 150, 64, 64, factor=8),  # ADE20K, 512 x 512
    variant(1, 19, 128, 256, factor=8),  # Cityscapes, 1024 x 2048
    variant(16, 150, 64, 64, factor=8),
)

MERGE_SCALES = Definition(
    functions={EAGER: eager_merge, COMPILED: eager_merge, OURS: fused_merge},
    variants=(
        variant(1, 21, 161, 161, sides=(81, 41)),
        variant(8, 21, 41, 41, sides=(31, 21)),
        variant(1, 150, 128, 128, sides=(96, 64)),
    ),
    inputs=_merge_inputs,
    elements=_merge_elements,
    differentiable=4,
)

UPSAMPLE_CROSS_ENTROPY = Definition(
    functions={EAGER: eager_loss, COMPILED: eager_loss, OURS: fused_loss},
    variants=_SIZES,
    inputs=_loss_inputs,
    elements=_loss_elements,
)

UPSAMPLE_ARGMAX = Definition(
    functions={EAGER: eager_argmax, COMPILED: eager_argmax, OURS: fused_argmax},
    variants=_SIZES,
    inputs=lambda draw, shape, factor: [draw.map(*shape)],
    elements=_argmax_elements,
    differentiable=0,
)
