"""What a deployment knows of its network: what images it takes, and what becomes of its maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import check_images
from .._model import SegmentationModel
from ..normalization import Normalization, normalization_of


@dataclass(frozen=True)
class Interface:
    """Facts about a network, which are also written to the file of a deployment.

    Attributes:
        name: of the network's class.
        num_classes: K.
        in_channels: of an image.
        smallest_side: of an image.
        align_corners: how the maps are resized.
        normalization: of uint8 images.
    """

    name: str
    num_classes: int
    in_channels: int
    smallest_side: int
    align_corners: bool
    normalization: Normalization

    @classmethod
    def of(cls, model: SegmentationModel, num_classes: int) -> Interface:
        return cls(
            type(model).__name__,
            num_classes,
            model.in_channels,
            model.smallest_side,
            model.align_corners,
            normalization_of(model),
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Interface:
        normalization = Normalization.from_dict(values["normalization"])
        return cls(**values | {"normalization": normalization})

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"normalization": self.normalization.to_dict()}

    def prepared(self, images: Tensor) -> Tensor:
        """Images as the network's maps are made of: normalised, float32, channels_last.

        Raises:
            TypeError: no tensor of floats or uint8.
            ValueError: another shape, too small for the network, or not on the CPU.
        """
        raw = isinstance(images, Tensor) and images.dtype == torch.uint8
        # Of uint8 images only the shape is left to check.
        checked = images.to("meta").float() if raw else images
        check_images(f"deployed {self.name}", checked, self.smallest_side, self.in_channels)
        if images.device.type != "cpu":
            raise ValueError(
                f"deployed {self.name}: images are on {images.device}, but it runs on the CPU; "
                "give images.cpu()"
            )
        images = images.contiguous(memory_format=torch.channels_last)
        if raw:
            images = self.normalization(images)
        return images.to(torch.float32, memory_format=torch.channels_last)
