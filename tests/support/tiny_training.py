"""`attnops train` on a network of milliseconds a step; as a script it runs the command.

The network "tiny" draws random numbers in every way that networks do: dropout, and bases of a
Hamburger in every forward.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from attnops.models import SegmentationModel, _registry
from attnops.nn import Hamburger


class Tiny(SegmentationModel):
    def __init__(self, num_classes: int = 7, dropout: float = 0.2, seed: int | None = None) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=4, padding=2), nn.BatchNorm2d(32), nn.ReLU()
        )
        self.context = Hamburger(32, rank=4, seed=seed, norm_groups=4)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(32, num_classes, 3, padding=1)

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.classify(self.dropout(self.context(self.backbone(images))))}


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Inside, the network is one of `list_models()`; outside, only the published ones are."""
    _registry.register("tiny")(Tiny)
    try:
        yield
    finally:
        del _registry._FACTORIES["tiny"]


CONFIG = """\
trainer:
  accelerator: cpu
  deterministic: true
  log_every_n_steps: 1
  max_steps: 12
  val_check_interval: 6
  limit_val_batches: 3
model:
  network: tiny
  optimizer: {name: adamw, lr: 1.0e-2, head_lr: 1.0}
  schedule: {power: 0.9, warmup_steps: 3}
data:
  root: shapes
  crop_size: [32, 48]
  batch_size: 4
  num_workers: 0
  limit: 10
checkpoint:
  every_n_steps: 3
"""


def config_file(folder: Path) -> str:
    """The configuration of a run that takes a second or two."""
    file = folder / "tiny.yaml"
    file.write_text(CONFIG)
    return str(file)


def state_of(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def same_state(one: dict, other: dict) -> bool:
    """Bit-equal weights, statistics, optimiser, schedule and place in the data."""
    optimizers = [x["optimizer_states"][0]["state"] for x in (one, other)]
    return (
        one["global_step"] == other["global_step"]
        and one["attnops"]["consumed"] == other["attnops"]["consumed"]
        and one["lr_schedulers"] == other["lr_schedulers"]
        and _equal(one["state_dict"], other["state_dict"])
        and _equal(one.get("current_model_state", {}), other.get("current_model_state", {}))
        and optimizers[0].keys() == optimizers[1].keys()
        and all(_equal(optimizers[0][key], optimizers[1][key]) for key in optimizers[0])
    )


def _equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


if __name__ == "__main__":
    from attnops.training.engine.command import main

    with registered():
        status = main(sys.argv[1:])
    raise SystemExit(status)
