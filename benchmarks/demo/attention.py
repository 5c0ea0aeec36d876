"""Pyramid attention on a photograph, without training: where pixels attend, and what they get.

Every pixel has a feature of colour (CIE Lab) and position. Keys are the features pooled to the
pyramid's cells, values the pooled colours. With score = q·k/T - |k|²/(2T), the softmax over the
anchors is that of -|q - k|²/(2T): a pixel attends to the cells that look like it and are not too
far away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from skimage import color, data
from torch import Tensor

import attnops

SIZES = (1, 3, 6, 8)
TEMPERATURE = 0.04  # T, in squared units of the features below
PLACE = 0.22  # weight of the position against the colour
# Row and column of the marked pixels in skimage.data.astronaut(), and what is there.
MARKED = (
    (440, 150, "suit"),
    (130, 222, "face"),
    (60, 90, "wall"),
    (480, 330, "helmet"),
)


@dataclass
class Attention:
    """What the picture shows: `photo` and `reconstruction` `[H, W, 3]`, `maps` `[K, H, W]`."""

    photo: numpy.ndarray
    reconstruction: numpy.ndarray
    maps: numpy.ndarray
    labels: list[str]
    pixels: list[tuple[int, int]]
    anchors: int


def features_of(photo: numpy.ndarray) -> Tensor:
    """`[H, W, 3]` in 0..1 -> `[1, 5, H, W]`: Lab, and the weighted row and column.

    Lightness counts less than hue, so that shaded parts of a surface still belong together.
    """
    height, width = photo.shape[:2]
    lab = torch.from_numpy(color.rgb2lab(photo)).float().permute(2, 0, 1)
    lab = (lab - torch.tensor([50.0, 0.0, 0.0])[:, None, None]) / torch.tensor([80.0, 50.0, 50.0])[
        :, None, None
    ]
    rows, columns = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    return torch.cat([lab, PLACE * rows[None], PLACE * columns[None]])[None]


def anchor_boxes(height: int, width: int, sizes: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Top, bottom, left, right of every cell, in the order of `pyramid_pool`'s anchors."""
    boxes = []
    for size in sizes:
        for i in range(size):
            for j in range(size):
                boxes.append(
                    (
                        i * height // size,
                        math.ceil((i + 1) * height / size),
                        j * width // size,
                        math.ceil((j + 1) * width / size),
                    )
                )
    return boxes


def paint(weights: Tensor, height: int, width: int, sizes: Sequence[int]) -> Tensor:
    """Weights `[S, K]` of K pixels spread over the cells' areas: densities `[K, H, W]`."""
    maps = torch.zeros(weights.shape[1], height, width)
    for weight, (top, bottom, left, right) in zip(
        weights, anchor_boxes(height, width, sizes), strict=True
    ):
        area = (bottom - top) * (right - left)
        maps[:, top:bottom, left:right] += (weight / area)[:, None, None]
    return maps


def attend(photo: numpy.ndarray, marked: Sequence[tuple[int, int, str]] = MARKED) -> Attention:
    """Run the two ops on a photograph `[H, W, 3]` in 0..1."""
    query = features_of(photo)
    colours = torch.from_numpy(photo).float().permute(2, 0, 1)[None]
    key = attnops.pyramid_pool(query, SIZES)
    value = attnops.pyramid_pool(colours, SIZES)
    scale = 1 / TEMPERATURE
    bias = -0.5 * scale * key.square().sum(dim=1)
    out = attnops.anchor_attention(query, key, value, scale, bias=bias)

    # With the identity as value, the output of a pixel is its attention to each anchor.
    rows, columns = zip(*((row, column) for row, column, _ in marked), strict=True)
    chosen = query[:, :, rows, columns]
    identity = torch.eye(key.shape[2])[None]
    weights = attnops.anchor_attention(chosen, key, identity, scale, bias=bias)[0]
    height, width = photo.shape[:2]
    return Attention(
        photo,
        out[0].permute(1, 2, 0).clamp(0, 1).numpy(),
        paint(weights, height, width, SIZES).numpy(),
        [label for _, _, label in marked],
        list(zip(rows, columns, strict=True)),
        key.shape[2],
    )


def photograph() -> numpy.ndarray:
    """A photograph that comes with scikit-image, `[512, 512, 3]` in 0..1."""
    return data.astronaut().astype(numpy.float32) / 255


def draw(attention: Attention, path: str | Path) -> None:
    """The picture: photograph, reconstruction, and a panel for every marked pixel."""
    from matplotlib import pyplot

    from ..report.plots import STYLE, save

    columns = max(2, len(attention.pixels))
    with pyplot.rc_context(STYLE):
        figure = pyplot.figure(figsize=(3.1 * columns, 7.4), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=(1.12, 1))
        left, right = top.subplots(1, 2)
        left.imshow(attention.photo)
        left.set_title("photograph, marked pixels")
        right.imshow(attention.reconstruction)
        right.set_title(f"every pixel from {attention.anchors} anchor colours")
        panels = bottom.subplots(1, columns)
        grey = attention.photo.mean(axis=2)
        for i, (row, column) in enumerate(attention.pixels):
            _mark(left, row, column, str(i + 1))
            panel = panels[i]
            panel.imshow(grey, cmap="gray", vmin=0, vmax=1.6, alpha=0.9)
            heat = attention.maps[i] / attention.maps[i].max()
            panel.imshow(heat, cmap="inferno", alpha=0.25 + 0.6 * heat, vmin=0, vmax=1)
            _mark(panel, row, column, str(i + 1))
            panel.set_title(f"{i + 1}: {attention.labels[i]} attends to")
        for axes in (left, right, *panels):
            axes.axis("off")
        save(figure, path)


def _mark(axes: object, row: int, column: int, text: str) -> None:
    axes.plot(column, row, "o", ms=11, mfc="none", mec="black", mew=3.5)
    axes.plot(column, row, "o", ms=11, mfc="none", mec="white", mew=1.8)
    axes.annotate(
        text,
        (column, row),
        (9, 5),
        textcoords="offset points",
        color="white",
        weight="bold",
        bbox={"boxstyle": "round,pad=0.15", "fc": "black", "ec": "none", "alpha": 0.7},
    )
