"""Labels from a network: whole images or sliding windows, at several scales, mirrored."""

from __future__ import annotations

import functools
import math
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from attnops import upsample_argmax
from attnops._checks import check_flag, check_number, check_pair
from attnops.nn.evaluation import evaluation_twin

from ._checks import check_images

Windows = tuple[list[int], list[int]]


class follows_compilation:
    """Decorator: on a network that torch.compile wraps, the method gets the compiled network.

    The wrapper hands all attributes on to the network inside, whose methods then know nothing of
    it and would run it eagerly. So the method looks at who asks for it.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method
        functools.update_wrapper(self, method)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self.method
        if not torch.compiler.is_compiling() and (wrapper := _asking_wrapper(instance)) is not None:
            instance = wrapper
        return types.MethodType(self.method, instance)


def _asking_wrapper(instance: Any) -> Any:
    """The wrapper around `instance` whose __getattr__ reads the method; None if it is not that."""
    frame = sys._getframe(2)  # of whoever reads the attribute: past this function and __get__
    if frame.f_code.co_name != "__getattr__":
        return None
    asking = frame.f_locals.get("self")
    compiled = getattr(sys.modules.get("torch._dynamo"), "OptimizedModule", ())
    return asking if isinstance(asking, compiled) and asking._orig_mod is instance else None


class Predictor(Protocol):
    """What prediction asks of a network, of its compiled form and of its stand-in."""

    align_corners: bool
    smallest_side: int
    in_channels: int

    def __call__(self, images: Tensor, resize: bool = True) -> dict[str, Tensor]: ...


def predict_labels(
    model: Predictor,
    images: Tensor,
    scales: Sequence[float],
    flip: bool,
    window: int | tuple[int, int] | None,
    stride: int | tuple[int, int] | None,
) -> Tensor:
    """`SegmentationModel.predict`; `model` may also be the compiled network."""
    factors = _checked_scales(scales)
    check_flag("predict", "flip", flip)
    windows = _checked_window(window, stride)
    images = _checked_images(model, images, factors, windows)
    if images.device.type == "cpu":
        images = images.contiguous(memory_format=torch.channels_last)  # convolves faster there
    with torch.no_grad():
        network = evaluation_twin(model)
        if factors == [1.0] and not flip:
            if windows is None:
                small = network(images, resize=False)["out_small"]
                return upsample_argmax(small, images.shape[2:], network.align_corners)
            return _slide(network, images, *windows).argmax(1)
        return _mean_probabilities(network, images, factors, flip, windows).argmax(1)


def _checked_scales(scales: Sequence[float]) -> list[float]:
    if isinstance(scales, (str, bytes)) or not isinstance(scales, Iterable):
        raise TypeError(f"predict: scales must be a sequence of numbers, got {scales!r}")
    factors = [check_number("predict", "scales", scale) for scale in scales]
    if not factors:
        raise ValueError("predict: scales must name at least one scale, got none")
    for factor in factors:
        if not 0 < factor < math.inf:
            raise ValueError(f"predict: scales must be positive, finite numbers, got {factor!r}")
    return factors


def _checked_images(
    model: Predictor, images: Tensor, factors: list[float], windows: Windows | None
) -> Tensor:
    """The images in the network's dtype; what the protocol makes of them is not too small."""
    network = getattr(model, "_orig_mod", model)
    name = f"{type(network).__name__}.predict"
    check_images(name, images, 1, model.in_channels)
    size, least = images.shape[2:], model.smallest_side
    for factor in factors:
        sides = _scaled_size(size, factor)
        if windows is not None:
            sides = [min(pair) for pair in zip(sides, windows[0], strict=True)]
        if min(sides) < least:
            cause = "" if factor == 1.0 else f" at scale {factor:g}"
            cause += "" if windows is None else f" in windows of {windows[0][0]}x{windows[0][1]}"
            raise ValueError(
                f"{name}: images must be at least {least}x{least} for the network; those of "
                f"{size[0]}x{size[1]}{cause} come to {sides[0]}x{sides[1]}"
            )
    example = next((p for p in network.parameters() if p.dtype.is_floating_point), None)
    if example is None:
        return images
    moves_inputs = network._forward_pre_hooks or "forward" in vars(network)  # offloading, sharding
    if images.device != example.device and not moves_inputs:
        raise ValueError(
            f"{name}: images are on {images.device} but the network is on {example.device}; move "
            "one of them with .to()"
        )
    if not images.is_meta and torch.is_autocast_enabled(images.device.type):
        return images
    return images.to(example.dtype)


def _scaled_size(size: Sequence[int], factor: float) -> list[int]:
    return list(size) if factor == 1.0 else [max(1, round(side * factor)) for side in size]


def _checked_window(
    window: int | tuple[int, int] | None, stride: int | tuple[int, int] | None
) -> Windows | None:
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
    model: Predictor,
    images: Tensor,
    factors: list[float],
    flip: bool,
    windows: Windows | None,
) -> Tensor:
    """`[B, K, H, W]`, summed over scales and flips, in float32 or float64."""
    size = images.shape[2:]
    total = None
    for factor in factors:
        scaled = images
        if factor != 1.0:
            scaled = interpolate(
                images, _scaled_size(size, factor), mode="bilinear", align_corners=False
            )
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


def _maps(model: Predictor, images: Tensor, windows: Windows | None) -> Tensor:
    """Logits of the images: small ones of the whole, or full-size ones from windows."""
    if windows is None:
        return model(images, resize=False)["out_small"]
    return _slide(model, images, *windows)


def _starts(length: int, side: int, step: int) -> list[int]:
    """Where windows begin so that they cover `length`, the last one ending with it."""
    last = max(length - side, 0)
    return sorted({*range(0, last, step), last})


def _slide(model: Predictor, images: Tensor, sides: list[int], steps: list[int]) -> Tensor:
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
