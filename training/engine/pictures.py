"""Pictures of predictions in TensorBoard."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from .logs import Curves


class Pictures(Callback):
    """Image, truth and prediction side by side, of the first images of every validation.

    Args:
        count: how many images.
    """

    def __init__(self, count: int = 4) -> None:
        self.count = count

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or batch_idx >= self.count:
            return
        images, target = batch[0], batch[1]
        palette = pl_module.info.palette
        row = side_by_side(images[0], target[0], outputs[0], palette)
        for logger in trainer.loggers:
            if isinstance(logger, Curves):
                logger.log_image(f"val/{batch_idx}", row, trainer.global_step)


def side_by_side(
    image: Tensor, target: Tensor, labels: Tensor, palette: Any, gap: int = 4
) -> Tensor:
    """Image `[C, H, W]`, truth and labels `[H, W]` beside each other: `[3, H, 3·W + 2·gap]` uint8.

    Pixels that are no class in the truth are black in both.
    """
    colours = torch.tensor(palette, dtype=torch.uint8, device=image.device)
    colours = torch.cat([colours, colours.new_zeros(1, 3)])
    outside = (target < 0) | (target >= len(palette))
    maps = [torch.where(outside, len(palette), x.long()) for x in (target, labels)]
    grey_or_rgb = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    parts = [grey_or_rgb.to(torch.uint8), *(colours[x].permute(2, 0, 1) for x in maps)]
    space = parts[0].new_full((3, image.shape[1], gap), 255)
    return torch.cat([parts[0], space, parts[1], space, parts[2]], dim=2).cpu()
