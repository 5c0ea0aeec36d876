"""Any network of timm's as four maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .from_timm import import_timm, without_inplace

MAPS = 4  # what the heads take
# Transformers take images of other sizes than they were trained at with one of these, if at all.
ANY_SIZE = ({"dynamic_img_size": True, "dynamic_img_pad": True}, {"strict_img_size": False}, {})


class TimmFeatures(nn.Module):
    """The last four maps of a network of timm's, without its classifier.

    A network with fewer stages gives its first map several times; a transformer of one resolution
    gives the maps after each quarter of its blocks.

    Args:
        name: timm's name of it, one that takes features_only.
        output_stride: of the last map, where timm offers it for the network: 8, 16 or 32. Of those
            it does not offer, the next larger one.
        in_channels: of the images; published weights are adapted as timm does it.
        pretrained: True: the weights that timm publishes, which it fetches; or a state dict of the
            whole network in timm's names.

    Attributes:
        channels: of the four maps.
        strides: of the four maps.
        mean, std: of the images' normalisation, on the scale 0 to 1.
        fixed_size: sides of the only images it takes; None: any.

    Shapes: `[B, in_channels, H, W]` -> four maps `[B, C, h, w]`.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such network, or gives no maps of it.
    """

    def __init__(
        self,
        name: str = "tf_efficientnet_b7",
        output_stride: int = 8,
        in_channels: int = 3,
        pretrained: bool | Mapping[str, Tensor] = False,
    ) -> None:
        super().__init__()
        timm = import_timm()
        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name}*")[:5])
            raise ValueError(
                f"backbone: timm {timm.__version__} has no network {name!r}; "
                + (f"it has {near}" if near else "timm.list_models('*part*') finds names")
            )
        options: dict[str, Any] = {"in_chans": in_channels}
        if pretrained is True:
            options["pretrained"] = True
        elif pretrained is not False:
            overlay = {"state_dict": dict(pretrained)}
            options |= {"pretrained": True, "pretrained_cfg_overlay": overlay}
        self.net, size_options = _made(timm, name, output_stride, options)
        without_inplace(self.net)
        info = self.net.feature_info
        repeated = MAPS - len(info.channels())
        self._repeats = max(repeated, 0)
        self._first = max(-repeated, 0)
        self.channels = self._four(list(info.channels()))
        self.strides = self._four(list(info.reduction()))
        self._rows_of_channels = str(getattr(self.net, "output_fmt", "")).endswith("NHWC")
        config = self.net.pretrained_cfg
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        bound = config.get("fixed_input_size", False) and not size_options
        self.fixed_size = tuple(config["input_size"][1:]) if bound else None

    def _four(self, found: list) -> tuple:
        return (*found[:1] * self._repeats, *found[self._first :])

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.fixed_size is not None and tuple(x.shape[2:]) != self.fixed_size:
            height, width = self.fixed_size
            raise ValueError(
                f"backbone: this network takes images of {height}x{width} only, got "
                f"{x.shape[2]}x{x.shape[3]}; resize them, predict with window={height}, or take "
                "another backbone"
            )
        maps = self.net(x)
        if self._rows_of_channels:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        return list(self._four(maps))


class TimmNetwork(nn.Module):
    """A network of timm's without its classifier, to load the file of the whole network into.

    Attributes:
        classifiers: names of the layers that are left out.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net = import_timm().create_model(name, num_classes=0)
        names = self.net.pretrained_cfg.get("classifier") or ()
        self.classifiers = (names,) if isinstance(names, str) else tuple(names)


def _made(
    timm: Any, name: str, output_stride: int, options: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """The network at the smallest stride from `output_stride` on that timm has, and the option
    that lets it take images of any size.
    """
    strides = [{"output_stride": stride} for stride in (8, 16) if output_stride <= stride]
    refused: Exception | None = None
    for size in ANY_SIZE:
        for stride in (*strides, {}):
            taken = {"features_only": True, "in_chans": options["in_chans"], **size, **stride}
            try:
                with torch.device("meta"):  # a trial that fills no weights
                    trial = timm.create_model(name, **taken)
            except (TypeError, AssertionError, NotImplementedError, RuntimeError) as error:
                refused = error
                continue
            taken |= options
            blocks = len(trial.model.feature_info) if hasattr(trial, "model") else 0
            if len(trial.feature_info.channels()) < MAPS <= blocks:
                taken["out_indices"] = [blocks * (i + 1) // MAPS - 1 for i in range(MAPS)]
            return timm.create_model(name, **taken), size
    raise ValueError(f"backbone: timm gives no maps of {name!r}: {refused}") from refused
