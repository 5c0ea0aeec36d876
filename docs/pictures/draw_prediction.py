"""Draws prediction.png: validation images of "shapes", their labels, and those of a network.

attnops train --config shapes_segnext_lite0 --trainer.max_steps 800 --seed_everything 1 \\
    --model.options.pretrained FILE --model.optimizer.lr 4e-4 --model.optimizer.head_lr 3
python docs/pictures/draw_prediction.py runs/shapes_segnext_lite0-0001/last.ckpt
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.patches import Patch
from panels import TITLE, figure, save, show
from torch import Tensor

from attnops.benchmarks.demo.training import coloured
from attnops.training import load_trained
from attnops.training.data import SegmentationData
from attnops.training.protocol import Protocol

SHOWN = (4,)  # of the validation images


def main(checkpoint: str | Path) -> Path:
    torch.manual_seed(0)  # the Hamburger's bases
    network, info = load_trained(checkpoint)
    data = SegmentationData(root="shapes")
    split = data.split(data.val_split)
    drawn, panels = figure(3, len(SHOWN), height=3.3)
    for row, index in enumerate(SHOWN):
        image, mask = (x.as_subclass(Tensor) for x in split[index])
        found = Protocol().labels(network, image)
        maps = (coloured(labels, info).permute(2, 0, 1) for labels in (mask, found))
        titles = ("image", "truth", "prediction") if row == 0 else ("", "", "")
        pictures = (image, *maps)
        for panel, picture, title in zip(panels[3 * row :], pictures, titles, strict=False):
            show(panel, picture / 255, title)
    names = zip(info.classes, info.palette, strict=True)
    patches = [Patch(color=[x / 255 for x in colour], label=name) for name, colour in names]
    columns = -(-len(patches) // 2)
    options = {"loc": "outside lower center", "frameon": False, "fontsize": TITLE - 2}
    drawn.legend(handles=patches, ncols=columns, **options)
    return save(drawn, "prediction", colours=96)


if __name__ == "__main__":
    main(sys.argv[1])
