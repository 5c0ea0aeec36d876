"""How a network wants its images: mean, standard deviation and order of the colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .ann import ANN
from .deeplab import DeepLabAttention
from .gald import GALD


@dataclass(frozen=True)
class Normalization:
    """x = (image - mean) / std on the scale 0 to 255, by the network's order of channels.

    Attributes:
        mean: of every channel.
        std: of every channel.
        order: "rgb" or "bgr": of the channels that the network reads; images are RGB.
    """

    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    order: str = "rgb"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError(
                f"Normalization: expected as many means as positive standard deviations, got "
                f"mean={self.mean}, std={self.std}"
            )
        if self.order not in ("rgb", "bgr"):
            raise ValueError(f"Normalization: order must be 'rgb' or 'bgr', got {self.order!r}")

    def __call__(self, images: Tensor) -> Tensor:
        """Images `[B, C, H, W]`, uint8 or floats of 0 to 255, in float32 (or their float dtype)."""
        if not images.is_floating_point():
            images = images.float()
        if self.order == "bgr":
            images = images.flip(1)
        mean, std = (images.new_tensor(x).view(-1, 1, 1) for x in (self.mean, self.std))
        return torch.addcdiv(-mean / std, images, std)

    def fitted(self, channels: int) -> Normalization:
        """For images of another number of channels: their averages where there are no colours.

        Of one or two channels all, of more than three those after red, green and blue.
        """
        if channels == len(self.mean):
            return self
        turn = slice(None, None, -1 if self.order == "bgr" else 1)
        pairs = list(zip(self.mean, self.std, strict=True))[turn]
        average = tuple(sum(values) / len(values) for values in zip(*pairs, strict=True))
        colours = pairs if channels > len(pairs) else []
        mean, std = zip(*colours, *[average] * (channels - len(colours)), strict=True)
        return Normalization(mean, std)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Normalization:
        return cls(_floats(values["mean"]), _floats(values["std"]), str(values["order"]))


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(x) for x in values)


IMAGENET = Normalization()
# Blue, green and red with no division: the authors' files and the Caffe models they began with.
ANN_RELEASED = Normalization((102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0), "bgr")
CAFFE = Normalization((104.00698793, 116.66876762, 122.67891434), (1.0, 1.0, 1.0), "bgr")


def imagenet_normalization(network: nn.Module) -> Normalization:
    """What timm's weights of the network's backbone were trained with."""
    backbone = getattr(network, "backbone", None)
    for owner in (network, backbone):
        if hasattr(owner, "mean") and hasattr(owner, "std"):  # on the scale 0 to 1
            found = Normalization(*(_floats(255 * x for x in of) for of in (owner.mean, owner.std)))
            return _fitted(found, network)
    return _fitted(IMAGENET, network)


def _fitted(normalization: Normalization, network: nn.Module) -> Normalization:
    return normalization.fitted(getattr(network, "in_channels", 3))


def published_normalization(network: nn.Module) -> Normalization:
    """What the published weights of a network were trained with."""
    if isinstance(network, ANN) and network.form == "released":
        return _fitted(ANN_RELEASED, network)
    if isinstance(network, (GALD, DeepLabAttention)):
        return _fitted(CAFFE, network)
    return imagenet_normalization(network)


def normalization_of(network: nn.Module) -> Normalization:
    """What `network` was trained with, if `load_trained` made it; else what its published weights
    were.
    """
    return getattr(network, "normalization", None) or published_normalization(network)


def normalized(network: nn.Module, images: Tensor) -> Tensor:
    """Images `[B, C, H, W]`, uint8 RGB, as `network` wants them, in float32."""
    return normalization_of(network)(images)
