"""The F-score of boundaries: how many of their pixels lie near the other's boundary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NO_CLASS = -1


def boundary_scores(
    labels: Tensor,
    target: Tensor,
    num_classes: int,
    radii: Sequence[int],
    ignore_index: int = 255,
) -> Tensor | None:
    """F-score of the boundaries of every class in one image, float64 `[len(radii), num_classes]`.

    A pixel is on a class's boundary if it differs, in being of that class, from its neighbour to
    the right, below, or below and right. Precision is the share of predicted boundary pixels that
    have a true one within the radius (Euclidean distance), recall the same the other way round. A
    class with no boundary in either image has F = 1, in one of them 0. Ignored pixels are of no
    class in both.

    Source: the measure of Perazzi et al. (DAVIS, CVPR 2016) as Takikawa et al. (Gated-SCNN, ICCV
    2019) and the table V of Li et al. (GALD, TIP 2021) use it for every class.

    Args:
        labels: `[H, W]`, predicted.
        target: `[H, W]`, true.
        num_classes: C.
        radii: in pixels.
        ignore_index: of pixels in `target` without a class.

    Returns:
        The scores; None if no pixel of the image has a class.
    """
    ignored = target == ignore_index
    if bool(ignored.all()):
        return None
    reach, size = max(radii), target.shape
    maps = (x.long().masked_fill(ignored, NO_CLASS) for x in (labels, target))
    found, true = (_boundary(x, reach) for x in maps)
    area = (size[0] + 2 * reach) * (size[1] + 2 * reach)
    counts = [torch.bincount(x // area, minlength=num_classes)[:num_classes] for x in (found, true)]
    stride = size[1] + 2 * reach
    distances = [_squared_distance(a, b, reach, stride) for a, b in ((found, true), (true, found))]
    rows = []
    for radius in radii:
        hits = [
            torch.bincount(keys[near <= radius * radius] // area, minlength=num_classes)
            for keys, near in zip((found, true), distances, strict=True)
        ]
        precision, recall = (
            torch.where(count > 0, hit[:num_classes].double() / count.clamp(min=1), 1.0)
            for hit, count in zip(hits, counts, strict=True)
        )
        rows.append(2 * precision * recall / (precision + recall).clamp(min=1e-300))
    return torch.stack(rows).cpu()


def _boundary(classes: Tensor, reach: int) -> Tensor:
    """Boundary pixels of all classes as sorted numbers (class·rows + row)·columns + column.

    Rows and columns are wider than the image by `reach` on each side, so that no step of up to
    `reach` leads from a row, or a class, into the next.
    """
    height, width = classes.shape
    stride = width + 2 * reach
    rows = torch.arange(reach, height + reach, device=classes.device)[:, None] * stride
    places = rows + torch.arange(reach, width + reach, device=classes.device)
    area = (height + 2 * reach) * stride
    keys = []
    for down, right in ((0, 1), (1, 0), (1, 1)):
        here = classes[: height - down, : width - right]
        there = classes[down:, right:]
        place = places[: height - down, : width - right]
        differ = here != there
        for side in (here, there):
            kept = differ & (side != NO_CLASS)
            keys.append(side[kept] * area + place[kept])
    return torch.cat(keys).unique()


def _squared_distance(keys: Tensor, others: Tensor, reach: int, stride: int) -> Tensor:
    """From each of `keys` to the nearest of `others` of its class, where it is up to `reach`."""
    nearest = torch.full_like(keys, (reach + 1) ** 2)
    if not len(others):
        return nearest
    for down in range(-reach, reach + 1):
        row = keys + down * stride
        after = torch.searchsorted(others, row)
        right = others[after.clamp(max=len(others) - 1)] - row
        left = row - others[(after - 1).clamp(min=0)]
        across = torch.minimum(right.abs(), left.abs()).clamp(max=reach + 1)
        nearest = torch.minimum(nearest, across * across + down * down)
    return nearest
