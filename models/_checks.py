"""What networks ask of their options, their images and the targets of their losses."""

from __future__ import annotations

import operator
from collections.abc import Mapping

from torch import Tensor, fx

from attnops._checks import FLOAT_DTYPES, check_shape, check_tensors

from ._outputs import SMALL, Outputs


def check_classes(owner: str, num_classes: object) -> int:
    """`num_classes` as an int.

    Raises:
        ValueError: not an integer of at least 2.
    """
    try:
        classes = -1 if isinstance(num_classes, bool) else operator.index(num_classes)
    except TypeError:
        classes = -1
    if classes < 2:
        raise ValueError(
            f"{owner}: num_classes must be an integer of at least 2 (background and one object are "
            f"two classes: the labels are the best of them), got {num_classes!r}"
        )
    return classes


def check_images(owner: str, images: object, smallest_side: int, in_channels: int = 3) -> None:
    """Images are float `[B, in_channels, H, W]`, no side shorter than `smallest_side`.

    Raises:
        TypeError: not a float tensor.
        ValueError: another shape.
    """
    if isinstance(images, fx.Proxy):
        raise TypeError(
            f"{owner}: torch.fx.symbolic_trace cannot follow a network whose steps depend on "
            "sizes; use torch.export.export(model, (images,)), or torch.compile"
        )
    if not isinstance(images, Tensor):
        raise TypeError(
            f"{owner}: images must be a tensor [B, {in_channels}, H, W], got "
            f"{type(images).__name__}; make one with torch.from_numpy (an array) or torch.stack "
            "(a list of tensors)"
        )
    if images.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{owner}: images have dtype {images.dtype}; expected float images, normalised as the "
            "network was trained: (images.float() - mean) / std"
        )
    if images.dim() == 3 and images.shape[0] == in_channels:
        raise ValueError(
            f"{owner}: images must be [B, {in_channels}, H, W], got one image "
            f"[{_sides(images.shape, ', ')}]; give images[None]"
        )
    check_tensors(owner, images=images)
    check_shape(owner, "images", images, ("B", in_channels, "H", "W"))
    size = images.shape[2:]
    if any(side < smallest_side for side in size):
        raise ValueError(
            f"{owner}: images must be at least {smallest_side}x{smallest_side}, got "
            f"{size[0]}x{size[1]}"
        )


def check_outputs(owner: str, outputs: object) -> None:
    """`outputs` are what a network returns.

    Raises:
        TypeError: no dict.
    """
    if not isinstance(outputs, Mapping):
        raise TypeError(
            f"{owner}: outputs must be the dict that the network returned, got "
            f"{type(outputs).__name__}; call model.loss(model(images), target)"
        )


def check_target(owner: str, outputs: Mapping[str, Tensor], target: object) -> None:
    """A target has class numbers for every pixel of the images that `outputs` are of.

    Raises:
        TypeError: not a tensor of integers.
        ValueError: another shape or device.
    """
    if not isinstance(target, Tensor):
        raise TypeError(
            f"{owner}: target must be a tensor [B, H, W] of class numbers, got "
            f"{type(target).__name__}"
        )
    if target.dtype.is_floating_point or target.dtype.is_complex:
        raise TypeError(
            f"{owner}: target has dtype {target.dtype}; expected class numbers, for example int64"
        )
    example = _example(outputs)
    if example is None:
        return
    size = _image_size(outputs)
    wanted = (example.shape[0], *(size or ("H", "W")))
    fits = target.dim() == 3 and target.shape[0] == wanted[0]
    if not fits or (size is not None and tuple(target.shape[1:]) != tuple(size)):
        hint = "; give target[:, 0]" if target.dim() == 4 and target.shape[1] == 1 else ""
        raise ValueError(
            f"{owner}: target must be [{_sides(wanted, ', ')}], the batch and the size of the "
            f"images, got [{_sides(target.shape, ', ')}]{hint}"
        )
    if target.device != example.device:
        raise ValueError(
            f"{owner}: the outputs are on {example.device} but target is on {target.device}; "
            "expected one device. Move one of them with .to()"
        )


def _example(outputs: Mapping[str, Tensor]) -> Tensor | None:
    """Some map of the outputs, without making one."""
    if isinstance(outputs, Outputs) and outputs.maps:
        return next(iter(outputs.maps.values()))
    names = [name for name in outputs if name == "out" or name.endswith(SMALL)]
    return outputs[names[0]] if names else None


def _image_size(outputs: Mapping[str, Tensor]) -> tuple[int, int] | None:
    if isinstance(outputs, Outputs) and outputs.size is not None:
        return outputs.size
    return tuple(outputs["out"].shape[2:]) if "out" in outputs else None


def _sides(shape: object, separator: str) -> str:
    return separator.join(map(str, shape))
