"""Backbones of networks by option: ours by name, any of timm's, or the caller's module."""

from __future__ import annotations

import copy
import operator
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .from_timm import import_timm
from .timm_features import MAPS, TimmFeatures, TimmNetwork

Pretrained = bool | str | os.PathLike[str]


def make_backbone(
    owner: str,
    backbone: str | nn.Module,
    ours: Mapping[str, Callable[[int], nn.Module]],
    in_channels: int,
    pretrained: Pretrained,
    output_stride: int = 8,
) -> nn.Module:
    """A module with `channels` that returns four maps.

    Args:
        owner: name of the network, for messages.
        backbone: a name in `ours`, a name of timm's, or such a module, which is returned.
        ours: functions of the images' channels that make it.
        in_channels: of the images.
        pretrained: weights of timm's networks are loaded here, those of `ours` by `load_backbone`
            when the network around it is there.
        output_stride: that timm's networks get where they can.

    Raises:
        TypeError: no name and no module.
        ValueError: an unknown name, or a module that does not return four maps, or that is to be
            given weights.
    """
    if isinstance(backbone, nn.Module):
        channels = getattr(backbone, "channels", None)
        if not isinstance(channels, (tuple, list)) or len(channels) != MAPS:
            raise ValueError(
                f"{owner}: a backbone returns {MAPS} maps and has an attribute `channels` with "
                f"their channels; {type(backbone).__name__} has {channels!r}"
            )
        if pretrained is not False:
            raise ValueError(
                f"{owner}: pretrained goes with the name of a backbone; load the weights of a "
                "module before giving it"
            )
        return backbone
    if not isinstance(backbone, str):
        raise TypeError(
            f"{owner}: backbone must be a name or a module, got {type(backbone).__name__}"
        )
    if backbone in ours:
        return ours[backbone](in_channels)
    if pretrained is False or pretrained is True:
        return TimmFeatures(backbone, output_stride, in_channels, pretrained)
    return TimmFeatures(backbone, output_stride, in_channels, _timm_state(backbone, pretrained))


def load_backbone(network: nn.Module, pretrained: Pretrained, published: str | None = None) -> None:
    """Give the backbone of `network`, one of ours, weights that were trained on images of three
    channels.

    Args:
        network: with `backbone`.
        pretrained: a file, as `attnops.models.load_checkpoint` takes them; True: timm's weights.
        published: timm's name of the same network; None: timm has no weights for it.

    Raises:
        ValueError: there are no published weights, or the file does not fit.
    """
    from ..checkpoints import load_checkpoint

    if pretrained is False or isinstance(network.backbone, TimmFeatures):
        return
    source: Any = pretrained
    if pretrained is True:
        if published is None:
            raise ValueError(
                f"{type(network).__name__}: nobody publishes weights for this backbone through "
                "timm; give pretrained= the path of a file, or a backbone of timm's"
            )
        source = import_timm().create_model(published, pretrained=True).state_dict()
    first = first_convolution(network.backbone)
    if first.in_channels == 3:
        load_checkpoint(network, source)
        return
    twin = copy.deepcopy(network)
    conv = first_convolution(twin.backbone)
    conv.in_channels = 3
    conv.weight = nn.Parameter(conv.weight.new_zeros(conv.out_channels, 3, *conv.kernel_size))
    load_checkpoint(twin, source)
    conv.weight = nn.Parameter(adapted(conv.weight.detach(), first.in_channels))
    network.backbone.load_state_dict(twin.backbone.state_dict())


def adapted(weight: Tensor, in_channels: int) -> Tensor:
    """A first convolution's weight for images of other than three channels, as timm adapts it."""
    return import_timm("timm.models").adapt_input_conv(in_channels, weight)


def first_convolution(backbone: nn.Module) -> nn.Conv2d:
    return next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))


def check_in_channels(owner: str, in_channels: object) -> int:
    """`in_channels` as an int.

    Raises:
        ValueError: not a positive integer.
    """
    try:
        channels = 0 if isinstance(in_channels, bool) else operator.index(in_channels)
    except TypeError:
        channels = 0
    if channels < 1:
        raise ValueError(f"{owner}: in_channels must be a positive integer, got {in_channels!r}")
    return channels


def _timm_state(name: str, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights of timm's network `name`, without its classifier, from a file in timm's names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not fit.
    """
    from ..checkpoints import load_checkpoint

    with torch.device("meta"):
        whole = TimmNetwork(name)
    load_checkpoint(whole, path)
    return whole.net.state_dict()
