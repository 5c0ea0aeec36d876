"""Data sets of a few small files, laid out as the published ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from checkout import ROOT
from PIL import Image

SIZE = (24, 32)
CAMVID = ROOT.parent / "shared" / "data" / "camvid"  # for research only: not in the repository


def write_image(path: Path, size: tuple[int, int] = SIZE, seed: int = 0, blocks: int = 1) -> Path:
    """Random colours in squares of `blocks` pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sides = [-(-side // blocks) for side in size]
    pixels = np.random.default_rng(seed).integers(0, 256, (*sides, 3), dtype=np.uint8)
    pixels = pixels.repeat(blocks, 0).repeat(blocks, 1)[: size[0], : size[1]]
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    return path


def write_labels(path: Path, numbers, size: tuple[int, int] = SIZE, palette=False) -> Path:
    """A label file in which `numbers` take turns along the rows, or an array as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(numbers)
    if values.ndim < 2:
        values = np.resize(values, size)
    image = Image.fromarray(values.astype(np.uint16 if values.max() > 255 else np.uint8))
    if palette:
        image = image.convert("P")
        image.putpalette(bytes(range(256)) * 3)
        image.putdata(values.ravel().tolist())
    image.save(path)
    return path


def write_pair(image: Path, label: Path, numbers, seed: int = 0, palette: bool = False) -> None:
    write_image(image, seed=seed)
    write_labels(label, numbers, palette=palette)


def camvid(root: Path, count: int = 3, ending: str = ".png", blocks: int = 1) -> Path:
    """SegNet's layout: squares of the classes, so that crops of one class exist."""
    for number, split in enumerate(("train", "val", "test")):
        for index in range(count):
            image = root / split / f"{split}{index}{ending}"
            write_image(image, seed=10 * number + index, blocks=blocks)
            classes = np.arange(12).reshape(3, 4).repeat(8, 0).repeat(8, 1)
            write_labels(root / f"{split}annot" / f"{split}{index}.png", classes)
    return root
