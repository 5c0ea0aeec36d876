"""A confusion matrix as a CSV file and as a picture."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from torch import Tensor

from ..data.info import DataInfo

NUMBERED = 25  # classes up to which the picture has numbers in its fields


def write_csv(path: Path, confusion: Tensor, info: DataInfo) -> None:
    """Pixels by true class (rows) and label (columns)."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ label", *info.classes])
        for name, row in zip(info.classes, confusion.tolist(), strict=True):
            writer.writerow([name, *row])


def draw(path: Path, confusion: Tensor, info: DataInfo, title: str) -> None:
    """Shares of each row's pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = confusion.double().numpy()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(4 + 0.4 * len(counts), 40)
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(counts))
    axes.set_xticks(places, info.classes, rotation=90, fontsize=8)
    axes.set_yticks(places, info.classes, fontsize=8)
    axes.set(xlabel="label", ylabel="true class", title=title)
    if len(counts) <= NUMBERED:
        for row, column in np.argwhere(shares >= 0.005):
            share = shares[row, column]
            colour = "white" if share > 0.5 else "black"
            text = f"{100 * share:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(path)
