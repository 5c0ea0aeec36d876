"""Checkpoints as `attnops train` writes them, of small networks that were never trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import attnops
from attnops.models import SegmentationModel, create_model
from attnops.training.data import DataInfo

TINY = {"widths": (4, 6, 8, 10, 12), "channels": 16, "hidden_channels": 8}
NORMALIZATION = {"mean": [110.0, 120.0, 130.0], "std": [60.0, 61.0, 62.0], "order": "bgr"}

GREY = {"mean": [120.0], "std": [60.0], "order": "rgb"}


def trained(path: Path, info: DataInfo, seed: int = 0, **options: Any) -> SegmentationModel:
    """Writes the checkpoint of a tiny `deeplab_attention`; returns the network that is in it."""
    torch.manual_seed(seed)
    options = TINY | {"num_classes": info.num_classes} | options
    network = create_model("deeplab_attention", **options).eval()
    for module in network.modules():  # signals that reach the end, so that labels differ
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    with torch.no_grad():
        blocks = (
            torch.randn(1, network.in_channels, 5, 5)
            .repeat_interleave(16, 2)
            .repeat_interleave(16, 3)
        )
        network.cls.bias -= network(blocks)["out"].mean((0, 2, 3))
    entry = {
        "format": 1,
        "version": attnops.__version__,
        "network": dict(network.config),
        "info": info.to_dict(),
        "normalization": NORMALIZATION if network.in_channels == 3 else GREY,
        "consumed": 0,
        "seed": 0,
    }
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"attnops": entry, "state_dict": weights}, path)
    return network.eval()


def prepared(image: torch.Tensor) -> torch.Tensor:
    """`[3, H, W]` uint8 as `[1, 3, H, W]`, by the definition of NORMALIZATION."""
    x = image.double().flip(0)
    mean, std = (torch.tensor(NORMALIZATION[k]).double()[:, None, None] for k in ("mean", "std"))
    return ((x - mean) / std).float()[None]
