"""Cross-entropies of small maps that are 0 where no pixel counts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, distributed

from attnops import upsample_cross_entropy

AUX_WEIGHT = 0.4  # of the auxiliary heads of ANN and GALD
KEEP_THRESHOLD, MIN_KEPT = 0.7, 100_000  # of their online hard example mining

_over_processes = False


@contextlib.contextmanager
def averaged_over_processes() -> Iterator[None]:
    """Inside, mean cross-entropies divide by the mean of all processes' pixel counts.

    The mean of such losses over the processes, which is what data-parallel training steps along,
    is the mean over all their pixels, however unevenly ignored ones are spread. All processes have
    to compute the same losses then.
    """
    global _over_processes
    before, _over_processes = _over_processes, True
    try:
        yield
    finally:
        _over_processes = before


def _shared(count: Tensor) -> Tensor:
    """The mean of `count` over processes where that is asked for, else `count`."""
    if not _over_processes or not distributed.is_initialized():
        return count
    total = count.detach().to(torch.float64)
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def mean_cross_entropy(
    small: Tensor,
    target: Tensor,
    ignore_index: int,
    align_corners: bool,
    avg_non_ignore: bool = True,
    label_smoothing: float = 0.0,
    class_weight: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of a map resized to `target`; 0, with zero gradients, without a pixel.

    Args:
        small: `[B, K, h, w]`.
        target: classes `[B, H, W]`.
        ignore_index: label of pixels that have no loss.
        align_corners: of the resize.
        avg_non_ignore: the mean is over the pixels with a class; False: over all pixels, the others
            count as 0.
        label_smoothing: as in `attnops.upsample_cross_entropy`.
        class_weight: `[K]`; the mean is weighted then.
    """
    half = small.dtype in (torch.float16, torch.bfloat16)
    wide = small.float() if half else small  # a sum over pixels has no place in half precision
    if class_weight is not None:
        class_weight = class_weight.to(wide)
    total = upsample_cross_entropy(
        wide,
        target,
        class_weight,
        ignore_index=ignore_index,
        align_corners=align_corners,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    if not avg_non_ignore:
        mean = total / max(target.numel(), 1)
    elif class_weight is None:
        mean = total / _shared((target != ignore_index).sum()).clamp(min=1)
    else:
        weights = _shared(_sum_of_weights(target, class_weight, ignore_index))
        mean = total / torch.where(weights > 0, weights, 1)
    device = small.device.type
    stays_wide = device != "meta" and torch.is_autocast_enabled(device)
    return mean if stays_wide else mean.to(small.dtype)


def _sum_of_weights(target: Tensor, class_weight: Tensor, ignore_index: int) -> Tensor:
    """Of the pixels that have a class, in the dtype of `class_weight`."""
    valid = target != ignore_index
    labels = torch.where(valid, target, 0).clamp(0, len(class_weight) - 1)
    return (class_weight[labels] * valid).sum()


def mined_cross_entropy(
    small: Tensor,
    target: Tensor,
    ignore_index: int,
    align_corners: bool,
    label_smoothing: float = 0.0,
    class_weight: Tensor | None = None,
) -> Tensor:
    """The mean over hard pixels, as ANN and GALD were released; 0 without one."""
    return upsample_cross_entropy(
        small,
        target,
        None if class_weight is None else class_weight.to(small),
        ignore_index=ignore_index,
        align_corners=align_corners,
        keep_threshold=KEEP_THRESHOLD,
        min_kept=MIN_KEPT,
        label_smoothing=label_smoothing,
    )
