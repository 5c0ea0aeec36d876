"""Labels from a network: whole images or sliding windows, at several scales, mirrored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from attnops import upsample_argmax
from attnops._checks import check_flag, check_pair

if TYPE_CHECKING:
    from ._model import SegmentationModel


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module of `model` in evaluation mode, and afterwards in its own again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def predict_labels(
    model: SegmentationModel,
    images: Tensor,
    scales: Sequence[float],
    flip: bool,
    window: int | tuple[int, int] | None,
    stride: int | tuple[int, int] | None,
) -> Tensor:
    """`SegmentationModel.predict`."""
    factors = _checked_scales(scales)
    check_flag("predict", "flip", flip)
    windows = _checked_window(window, stride)
    if images.device.type == "cpu" and images.dim() == 4:
        images = images.contiguous(memory_format=torch.channels_last)  # convolves faster there
    with torch.no_grad(), evaluation_mode(model):
        if factors == [1.0] and not flip:
            if windows is None:
                small = model(images, resize=False)["out_small"]
                return upsample_argmax(small, images.shape[2:], model.align_corners)
            return _slide(model, images, *windows).argmax(1)
        return _mean_probabilities(model, images, factors, flip, windows).argmax(1)


def _checked_scales(scales: Sequence[float]) -> list[float]:
    if not isinstance(scales, Sequence) or isinstance(scales, str) or not scales:
        raise TypeError(f"predict: scales must be a sequence of numbers, got {scales!r}")
    for scale in scales:
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not scale > 0:
            raise ValueError(f"predict: scales must be positive numbers, got {scale!r}")
    return [float(scale) for scale in scales]


def _checked_window(
    window: int | tuple[int, int] | None, stride: int | tuple[int, int] | None
) -> tuple[list[int], list[int]] | None:
    """Sides and strides of the windows, or None."""
    if window is None:
        if stride is not None:
            raise ValueError(f"predict: stride={stride!r} needs a window")
        return None
    sides = check_pair("predict", "window", window)
    default = [-(-3 * side // 4) for side in sides]
    steps = default if stride is None else check_pair("predict", "stride", stride)
    for side, step in zip(sides, steps, strict=True):
        if not 1 <= step <= side:
            raise ValueError(
                f"predict: window and stride must be positive and the stride at most the window, "
                f"got window={window!r}, stride={stride!r}"
            )
    return sides, steps


def _mean_probabilities(
    model: SegmentationModel,
    images: Tensor,
    factors: list[float],
    flip: bool,
    windows: tuple[list[int], list[int]] | None,
) -> Tensor:
    """`[B, K, H, W]`, summed over scales and flips, in float32 or float64."""
    size = images.shape[2:]
    total = None
    for factor in factors:
        scaled = images
        if factor != 1.0:
            sides = [max(1, round(side * factor)) for side in size]
            scaled = interpolate(images, sides, mode="bilinear", align_corners=False)
        for mirrored in (False, True) if flip else (False,):
            maps = _maps(model, scaled.flip(3) if mirrored else scaled, windows)
            if mirrored:
                maps = maps.flip(3)
            corners = model.align_corners
            maps = interpolate(maps, size, mode="bilinear", align_corners=corners)
            wide = maps.dtype if maps.dtype == torch.float64 else torch.float32
            probabilities = maps.softmax(1, dtype=wide)
            total = probabilities if total is None else total.add_(probabilities)
    return total


def _maps(
    model: SegmentationModel, images: Tensor, windows: tuple[list[int], list[int]] | None
) -> Tensor:
    """Logits of the images: small ones of the whole, or full-size ones from windows."""
    if windows is None:
        return model(images, resize=False)["out_small"]
    return _slide(model, images, *windows)


def _starts(length: int, side: int, step: int) -> list[int]:
    """Where windows begin so that they cover `length`, the last one ending with it."""
    last = max(length - side, 0)
    return sorted({*range(0, last, step), last})


def _slide(model: SegmentationModel, images: Tensor, sides: list[int], steps: list[int]) -> Tensor:
    """Logits `[B, K, H, W]`, averaged over the windows that cover a pixel."""
    height, width = images.shape[2:]
    total = counts = None
    for top in _starts(height, sides[0], steps[0]):
        for left in _starts(width, sides[1], steps[1]):
            part = (..., slice(top, top + sides[0]), slice(left, left + sides[1]))
            maps = model(images[part])["out"]
            if total is None:
                total = maps.new_zeros((*maps.shape[:2], height, width), dtype=_sum_dtype(maps))
                counts = total.new_zeros((height, width))
            total[part] += maps
            counts[part] += 1
    return total.div_(counts)


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
