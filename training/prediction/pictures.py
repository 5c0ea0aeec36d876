"""Labels as files: a PNG of numbers in the classes' colours, and an overlay with a legend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data.info import DataInfo

LEGEND_ROWS = 40  # at most; the rarest classes of an image are left out


def write_labels(path: Path, labels: Tensor, info: DataInfo) -> None:
    """An 8-bit PNG of the labels `[H, W]`, which viewers show in the colours of the classes."""
    image = Image.fromarray(labels.to("cpu", torch.uint8).numpy())
    image.putpalette([value for colour in info.palette for value in colour])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def overlay(
    image: Tensor, labels: Tensor, info: DataInfo, opacity: float = 0.5, legend: bool = True
) -> Image.Image:
    """An image uint8 `[C, H, W]` under the colours of its labels `[H, W]`.

    Of other than three channels the first three are shown as colours, or the first as grey.

    Args:
        image: the pixels.
        labels: of them.
        info: names and colours of the classes.
        opacity: of the colours, 0 to 1.
        legend: add the classes that occur, the most frequent first, on the right.
    """
    labels = labels.cpu()
    colours = torch.tensor(info.palette, dtype=torch.float32)[labels].permute(2, 0, 1)
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    mixed = torch.lerp(shown.cpu().float(), colours, opacity).round().to(torch.uint8)
    picture = Image.fromarray(mixed.permute(1, 2, 0).numpy())
    return _with_legend(picture, labels, info) if legend else picture


def _with_legend(picture: Image.Image, labels: Tensor, info: DataInfo) -> Image.Image:
    counts = np.bincount(labels.numpy().ravel(), minlength=info.num_classes)
    present = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label]]
    rows = [(label, 100 * counts[label] / labels.numel()) for label in present[:LEGEND_ROWS]]
    size = int(np.clip(picture.height / max(len(rows), 12) * 0.62, 10, 28))
    font = ImageFont.load_default(size)
    texts = [f"{info.classes[label]}  {share:.1f} %" for label, share in rows]
    width = 3 * size + int(max(font.getlength(text) for text in texts))
    step = round(1.6 * size)
    height = max(picture.height, step * len(rows) + size)
    canvas = Image.new("RGB", (picture.width + width, height), "white")
    canvas.paste(picture, (0, 0))
    pen = ImageDraw.Draw(canvas)
    left = picture.width + size // 2
    for number, ((label, _), text) in enumerate(zip(rows, texts, strict=True)):
        top = size // 2 + step * number
        box = (left, top, left + size, top + size)
        pen.rectangle(box, fill=info.palette[label], outline=(90, 90, 90))
        pen.text((left + round(1.5 * size), top + size / 2), text, "black", font, anchor="lm")
    return canvas
