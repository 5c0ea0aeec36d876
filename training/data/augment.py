"""The augmentation that the papers train with, as torchvision v2 transforms on uint8.

Random scale and crop (a crop in which one class takes more than a share is drawn again), mirroring,
photometric distortion. Padding is the ignored label in masks and ImageNet's mean colour in images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from .labels import IGNORED

MEAN_COLOUR = (124, 116, 104)
TRIES = 10


class RandomScaledCrop(v2.Transform):
    """A crop of the image scaled at random, without scaling more of it than the crop.

    The part of the image is drawn in its own pixels and resized to the crop; masks by the nearest
    pixel, images bilinearly with antialiasing. A side that is scaled to less than the crop is
    padded at the end.

    Args:
        size: (height, width) of the crop.
        scale_range: of the factor, drawn uniformly.
        cat_max_ratio: a crop in which one class has more than this share of the pixels that have
            one is drawn again, up to ten times; 1: any will do.
        base_size: (longer, shorter) side; the factor is then relative to the image resized into
            it, as it is published for data of mixed sizes.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale_range: tuple[float, float] = (0.5, 2.0),
        cat_max_ratio: float = 0.75,
        base_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if min(size) < 1:
            raise ValueError(f"crop_size must be positive, got {size}")
        if not 0 < scale_range[0] <= scale_range[1]:
            raise ValueError(
                f"scale_range must be two positive numbers in order, got {scale_range}"
            )
        if not 0 < cat_max_ratio <= 1:
            raise ValueError(
                f"cat_max_ratio must be more than 0 and at most 1, got {cat_max_ratio}"
            )
        self.size, self.scale_range = tuple(size), tuple(scale_range)
        self.cat_max_ratio, self.base_size = cat_max_ratio, base_size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        mask = next(x for x in flat_inputs if isinstance(x, tv_tensors.Mask))
        sides = mask.shape[-2:]
        low, high = self.scale_range
        scale = low + (high - low) * torch.rand(()).item()
        if self.base_size is not None:
            scale *= base_scale(sides, self.base_size)
        part, scaled = [], []
        for side, wanted in zip(sides, self.size, strict=True):
            length = min(side, max(1, round(wanted / scale)))
            part.append(length)
            whole = max(1, round(side * scale))
            scaled.append(min(wanted, whole) if length == side else wanted)
        for _ in range(TRIES):
            top = int(torch.randint(sides[0] - part[0] + 1, ()))
            left = int(torch.randint(sides[1] - part[1] + 1, ()))
            box = (slice(top, top + part[0]), slice(left, left + part[1]))
            if self.cat_max_ratio == 1 or self._is_mixed(mask[..., box[0], box[1]]):
                break
        return {"box": box, "scaled": scaled}

    def _is_mixed(self, mask: Tensor) -> bool:
        counts = torch.bincount(mask.as_subclass(Tensor).flatten().int(), minlength=IGNORED + 1)
        counts = counts[:IGNORED]
        return int((counts > 0).sum()) > 1 and counts.max() < self.cat_max_ratio * counts.sum()

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        is_mask = isinstance(inpt, tv_tensors.Mask)
        part = inpt.as_subclass(Tensor)[..., params["box"][0], params["box"][1]]
        height, width = params["scaled"]
        if is_mask:
            result = resized_labels(part, (height, width))
        else:
            result = F.resize_image(part, [height, width], InterpolationMode.BILINEAR)
        below, right = self.size[0] - height, self.size[1] - width
        if below or right:
            shape = (*result.shape[:-2], *self.size)
            if is_mask:
                padded = result.new_full(shape, IGNORED)
            else:
                colour = torch.tensor(padding(result.shape[-3]), dtype=result.dtype)
                padded = colour[:, None, None].expand(shape).clone()
            padded[..., :height, :width] = result
            result = padded
        return tv_tensors.wrap(result, like=inpt)


def padding(channels: int) -> tuple[int, ...]:
    """The colour around images: the mean, and its average in channels that are no colours."""
    grey = round(sum(MEAN_COLOUR) / 3)
    return (*MEAN_COLOUR, *[grey] * (channels - 3)) if channels >= 3 else (grey,) * channels


def base_scale(sides: tuple[int, int], base_size: tuple[int, int]) -> float:
    """The factor that brings an image into (longer, shorter) side, keeping its proportions."""
    return min(max(base_size) / max(sides), min(base_size) / min(sides))


def resized_labels(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels `[H, W]` at another size: of each pixel's middle, that of the nearest pixel."""
    if mask.shape[-2:] == torch.Size(size):
        return mask
    return F.resize_image(mask[None], list(size), InterpolationMode.NEAREST_EXACT)[0]


class PhotometricDistortion(v2.Transform):
    """Brightness, contrast, saturation and hue, each changed with probability 1/2.

    As SSD introduced it and segmentation codes use it: up to 32 of 255 are added, contrast and
    saturation multiplied by 0.5 to 1.5, hue turned by up to a tenth of the circle. Images of other
    than three channels keep the last two.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        chance, amount = torch.rand(4).tolist(), (2 * torch.rand(4) - 1).tolist()
        brightness, contrast, saturation, hue = (
            value if p < 0.5 else 0.0 for p, value in zip(chance, amount, strict=True)
        )
        return {
            "brightness": 32 * brightness,
            "contrast": 1 + 0.5 * contrast,
            "saturation": 1 + 0.5 * saturation,
            "hue": 0.1 * hue,
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            return inpt
        image = inpt.as_subclass(Tensor)
        if params["brightness"] != 0 or params["contrast"] != 1:
            image = image.float().add_(params["brightness"]).mul_(params["contrast"])
            image = image.round_().clamp_(0, 255).to(torch.uint8)
        if image.shape[-3] != 3:
            return tv_tensors.wrap(image, like=inpt)
        if params["saturation"] != 1:
            image = F.adjust_saturation_image(image, params["saturation"])
        if params["hue"] != 0:
            image = F.adjust_hue_image(image, params["hue"])
        return tv_tensors.wrap(image, like=inpt)


def training_transform(
    crop_size: tuple[int, int],
    scale_range: tuple[float, float] = (0.5, 2.0),
    cat_max_ratio: float = 0.75,
    flip: bool = True,
    photometric: bool = True,
    base_size: tuple[int, int] | None = None,
) -> v2.Transform:
    """What a training sample goes through; image and mask stay uint8."""
    steps = [RandomScaledCrop(crop_size, scale_range, cat_max_ratio, base_size)]
    steps += [v2.RandomHorizontalFlip()] if flip else []
    steps += [PhotometricDistortion()] if photometric else []
    return v2.Compose(steps)
