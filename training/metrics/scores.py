"""Scores of labels against a data set's, summed over images and processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix

from .boundary import boundary_scores

RADII = (3, 5, 9, 12)  # of boundaries, in pixels: table V of GALD


class SegmentationMetrics(Metric):
    """Confusion matrix and what follows from it; on request the F-score of boundaries.

    Over all pixels of all images (of all processes); ignored pixels do not count. A class that
    neither occurs nor is predicted has no IoU and is left out of the mean.

    Args:
        num_classes: K.
        ignore_index: of pixels in the target without a class.
        radii: of the boundary scores, in pixels; none: no such scores. They are means over images.

    Example:
        >>> import torch
        >>> from attnops.training.metrics import SegmentationMetrics
        >>> metrics = SegmentationMetrics(2)
        >>> metrics.update(torch.tensor([[[0, 1], [1, 1]]]), torch.tensor([[[0, 0], [1, 255]]]))
        >>> metrics.compute()["mIoU"]
        tensor(0.5000, dtype=torch.float64)
    """

    full_state_update = False

    def __init__(
        self, num_classes: int, ignore_index: int = 255, radii: Sequence[int] = (), **options: Any
    ) -> None:
        super().__init__(**options)
        self.num_classes, self.ignore_index, self.radii = num_classes, ignore_index, tuple(radii)
        matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", matrix, dist_reduce_fx="sum")
        # Of 2^-40, so that the sum is the same in whatever order processes and images come.
        scores = torch.zeros(len(self.radii), num_classes, dtype=torch.int64)
        self.add_state("boundary", scores, dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, labels: Tensor, target: Tensor) -> None:
        """Add labels and their target, both `[B, H, W]` of integers."""
        self.confusion += multiclass_confusion_matrix(
            labels, target, self.num_classes, ignore_index=self.ignore_index, validate_args=False
        )
        for one, truth in zip(labels, target, strict=True) if self.radii else ():
            scores = boundary_scores(one, truth, self.num_classes, self.radii, self.ignore_index)
            if scores is not None:
                fixed = (scores * _UNIT).round().long()
                self.boundary += fixed.to(self.boundary.device)
                self.images += 1

    def compute(self) -> dict[str, Tensor]:
        """`summary` of the confusion matrix, and with radii "boundary" `[radii, K]`."""
        found = summary(self.confusion)
        if self.radii:
            found["boundary"] = self.boundary.double() / _UNIT / self.images
        return found


_UNIT = 2.0**40


def summary(confusion: Tensor) -> dict[str, Tensor]:
    """What a confusion matrix says, in float64.

    Args:
        confusion: `[K, K]`, pixels by their class (rows) and their label (columns).

    Returns:
        "mIoU", "accuracy" (of pixels), "mean_accuracy" (of classes); of every class "IoU" and
        "class_accuracy", NaN for what the images do not have; and "confusion" itself.
    """
    counts = confusion.double()
    right, truth, found = counts.diagonal(), counts.sum(1), counts.sum(0)
    iou, accuracy = right / (truth + found - right), right / truth
    return {
        "mIoU": iou.nanmean(),
        "accuracy": right.sum() / truth.sum(),
        "mean_accuracy": accuracy.nanmean(),
        "IoU": iou,
        "class_accuracy": accuracy,
        "confusion": confusion,
    }
