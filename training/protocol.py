"""How an image is turned into labels: at which scales, mirrored or not, in windows or whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnops.models import SegmentationModel
from attnops.models.normalization import normalized

from .data.augment import base_scale

PRECISIONS = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}


@dataclass(frozen=True)
class Protocol:
    """What `SegmentationModel.predict` is asked for.

    Attributes:
        scales: factors by which the image is resized.
        flip: also the mirrored image.
        window: (height, width) of sliding windows; None: the whole image.
        stride: distance of windows; None: 3/4 of the window.
        base_size: (longer, shorter) side that the image is resized into; `scales` are relative to
            that. Labels have the image's own size.
        precision: "32", or "bf16" or "16" under autocast.
    """

    scales: Sequence[float] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    base_size: tuple[int, int] | None = None
    precision: str = "32"

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise ValueError(f"scales must be positive, finite numbers, got {list(self.scales)}")

    def labels(self, network: SegmentationModel, image: Tensor) -> Tensor:
        """Labels `[H, W]` of an image uint8 `[C, H, W]` of any size, on the network's device.

        An image that is too small for the network is continued at its borders.
        """
        device = next(network.parameters()).device
        height, width = image.shape[1:]
        factor = base_scale((height, width), self.base_size) if self.base_size else 1.0
        scales = [scale * factor for scale in self.scales]
        images = continued(image, _shortest(network.smallest_side, min(scales)))[None].to(device)
        images = normalized(network, images)
        dtype = PRECISIONS[self.precision]
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            labels = network.predict(images, scales, self.flip, self.window, self.stride)
        return labels[0, :height, :width]


def continued(image: Tensor, side: int) -> Tensor:
    """Images `[..., H, W]` with both sides at least `side`: their last row and column go on."""
    for dim in (-2, -1):
        if image.shape[dim] < side:
            places = torch.arange(side, device=image.device).clamp(max=image.shape[dim] - 1)
            image = image.index_select(dim, places)
    return image


def _shortest(smallest_side: int, scale: float) -> int:
    """The shortest side that, resized by `scale`, is not below `smallest_side`."""
    side = max(1, math.floor(smallest_side / scale) - 1)
    while max(1, round(side * scale)) < smallest_side:
        side += 1
    return side
