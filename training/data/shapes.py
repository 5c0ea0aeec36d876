"""Generated data: textured shapes on textured ground, which need context to be told apart.

Ground and shapes of all classes draw their textures from one distribution, so that what is around
a pixel, its shape's outline, says what it is; its colours do not. Shapes have all sizes and turns
and lie on each other.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .folder import Sample, check_split
from .info import DataInfo

CLASSES = ("ground", "disc", "ring", "square", "triangle", "star", "cross")
PALETTE = (
    *((60, 60, 60), (230, 80, 60), (250, 190, 50), (70, 150, 230)),
    *((90, 190, 90), (180, 100, 210), (60, 200, 200)),
)
COUNTS = {"train": 2000, "val": 100, "test": 200}


class Shapes:
    """The data set "shapes": the same images for the same seed and size, on every machine.

    Args:
        size: (height, width) of its images.
        seed: of all its images.
        counts: images of each split.
    """

    layout = "shapes"
    evaluation_split = "val"

    def __init__(
        self,
        size: tuple[int, int] = (160, 160),
        seed: int = 0,
        counts: dict[str, int] | None = None,
    ) -> None:
        if min(size) < 16:
            raise ValueError(f"shapes: images must be at least 16x16, got {size[0]}x{size[1]}")
        self.size, self.seed, self.counts = (int(size[0]), int(size[1])), seed, counts or COUNTS
        self.info = DataInfo("shapes", CLASSES, PALETTE)
        self.splits = tuple(self.counts)
        self.paths: dict[str, list] = {}

    def split(self, name: str) -> ShapesSplit:
        number = self.splits.index(check_split(self, name))
        return ShapesSplit(self.size, (self.seed, number), self.counts[name])


class ShapesSplit(Dataset):
    """Images of one split, drawn when they are asked for."""

    def __init__(self, size: tuple[int, int], seed: tuple[int, int], count: int) -> None:
        self.size, self.seed, self.count = size, seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        random = np.random.Generator(np.random.PCG64([*self.seed, index]))
        image, labels = _draw(self.size, random)
        return tv_tensors.Image(torch.from_numpy(image)), tv_tensors.Mask(torch.from_numpy(labels))


def _draw(size: tuple[int, int], random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 `[3, H, W]` and labels uint8 `[H, W]`."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    image = _texture(rows, columns, random)
    labels = np.zeros(size, dtype=np.uint8)
    side = min(size)
    for _ in range(4 + int(random.random() * 6)):
        kind = 1 + int(random.random() * (len(CLASSES) - 1))
        radius = side * 0.06 * 6.0 ** random.random()  # 6 to 36 % of the shorter side
        top, left = random.random() * size[0], random.random() * size[1]
        turn = 2 * math.pi * random.random()
        y, x = (rows - top) / radius, (columns - left) / radius
        inside = _inside(CLASSES[kind], *_turned(y, x, turn))
        if inside.any():
            texture = _texture(rows, columns, random)
            image[:, inside] = texture[:, inside]
            labels[inside] = kind
    image += 12 * random.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), labels


def _turned(y: np.ndarray, x: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    return (
        math.cos(angle) * y - math.sin(angle) * x,
        math.sin(angle) * y + math.cos(angle) * x,
    )


def _inside(kind: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Which points belong to the shape of radius about 1 around 0."""
    distance = y * y + x * x
    if kind == "disc":
        return distance <= 0.8
    if kind == "ring":
        return (distance <= 1.0) & (distance >= 0.3)
    if kind == "square":
        return np.maximum(np.abs(y), np.abs(x)) <= 0.8
    if kind == "cross":
        return (np.maximum(np.abs(y), np.abs(x)) <= 1.0) & (np.minimum(np.abs(y), np.abs(x)) <= 0.3)
    if kind == "triangle":
        return np.maximum(y, -0.5 * y + 0.866 * np.abs(x)) <= 0.55
    points = np.abs(np.mod(np.arctan2(y, x), 2 * math.pi / 5) - math.pi / 5)
    return np.sqrt(distance) <= 0.5 + 0.65 * (1 - points / (math.pi / 5))  # a star of five points


def _texture(rows: np.ndarray, columns: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Stripes of two colours at some angle, width and phase, float32 `[3, H, W]`."""
    colours = 30 + 195 * random.random((2, 3, 1, 1), dtype=np.float32)
    angle, width = math.pi * random.random(), 3 + 9 * random.random()
    phase = 2 * math.pi * random.random()
    along = math.cos(angle) * rows + math.sin(angle) * columns
    share = 0.5 + 0.5 * np.sin(along * (2 * math.pi / width) + phase)
    return colours[0] + (colours[1] - colours[0]) * share.astype(np.float32)
