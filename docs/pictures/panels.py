"""What the scripts beside this share: a generated scene, rows of panels, small PNG files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

FOLDER = Path(__file__).resolve().parent
OUT = FOLDER  # tests draw elsewhere
# Everything is legible at half size, on the pages' light and dark backgrounds: panels are white.
TITLE = 16
QUERY = "#d81b60"
# sky, ground, house, tree, ball
COLOURS = torch.tensor(
    [
        [0.62, 0.78, 0.93],
        [0.55, 0.62, 0.38],
        [0.80, 0.55, 0.36],
        [0.16, 0.42, 0.20],
        [0.84, 0.2, 0.2],
    ]
)


def scene(height: int = 96, width: int = 128, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A picture `[3, H, W]` in 0..1 and its labels `[H, W]`: sky, ground, house, trees, balls."""
    rows = torch.linspace(0, 1, height).view(-1, 1)
    columns = torch.linspace(0, 4 / 3, width).view(1, -1)
    labels = (rows > 0.62 + 0.03 * torch.sin(7 * columns)).long().expand(height, width).clone()
    house = (rows > 0.38) & (rows < 0.80) & (columns > 0.50) & (columns < 0.86)
    roof = (rows > 0.22) & (rows <= 0.38) & ((columns - 0.68).abs() < 1.45 * (rows - 0.22))
    labels[house | roof] = 2
    for x, y, radius in ((0.18, 0.40, 0.14), (1.12, 0.44, 0.11)):
        crown = (columns - x).square() + (rows - y).square() < radius**2
        trunk = ((columns - x).abs() < 0.022) & (rows > y) & (rows < 0.76)
        labels[crown | trunk] = 3
    for x, y, radius in ((0.36, 0.86, 0.07), (1.0, 0.84, 0.05)):
        labels[(columns - x).square() + (rows - y).square() < radius**2] = 4
    generator = torch.Generator().manual_seed(seed)
    noise = 0.025 * torch.randn(3, height, width, generator=generator)
    shade = 1.06 - 0.22 * rows
    return (COLOURS[labels].permute(2, 0, 1) * shade + noise).clamp(0, 1), labels


def figure(columns: int, rows: int = 1, height: float = 2.75) -> tuple[Figure, list[Axes]]:
    """A white figure of panels 3.3 inches wide, and the panels in reading order."""
    made, axes = pyplot.subplots(
        *(rows, columns),
        figsize=(3.3 * columns, height * rows),
        squeeze=False,
        layout="constrained",
    )
    for panel in axes.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    return made, list(axes.flat)


def show(panel: Axes, data: Tensor, title: str, **options: Any) -> Any:
    """A picture `[3, H, W]`, or a map `[H, W]` by a colour map."""
    data = data.detach().float()
    if data.dim() == 3:
        data = data.permute(1, 2, 0).clamp(0, 1)
    else:
        options.setdefault("cmap", "viridis")
    drawn = panel.imshow(data.numpy(), interpolation="nearest", **options)
    panel.set_title(title, fontsize=TITLE)
    return drawn


def mark(panel: Axes, row: float, column: float, size: float = 17) -> None:
    """A cross where a query stands."""
    panel.plot(column, row, "x", color="white", markersize=size, markeredgewidth=6)
    panel.plot(column, row, "x", color=QUERY, markersize=size - 1, markeredgewidth=3)


def save(drawn: Figure, name: str, colours: int = 200) -> Path:
    """A PNG with a palette beside the scripts."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, dpi=100, facecolor="white", bbox_inches="tight", pad_inches=0.1)
    pyplot.close(drawn)
    path = OUT / f"{name}.png"
    picture = Image.open(buffer).convert("RGB")
    picture.quantize(colours, method=Image.Quantize.MEDIANCUT).save(path, optimize=True)
    return path
