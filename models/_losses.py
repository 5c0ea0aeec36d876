"""Cross-entropies of small maps that are 0 where no pixel counts."""

from __future__ import annotations

import torch
from torch import Tensor

from attnops import upsample_cross_entropy

AUX_WEIGHT = 0.4  # of the auxiliary heads of ANN and GALD
KEEP_THRESHOLD, MIN_KEPT = 0.7, 100_000  # of their online hard example mining


def mean_cross_entropy(
    small: Tensor,
    target: Tensor,
    ignore_index: int,
    align_corners: bool,
    avg_non_ignore: bool = True,
    label_smoothing: float = 0.0,
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
    """
    half = small.dtype in (torch.float16, torch.bfloat16)
    total = upsample_cross_entropy(
        small.float() if half else small,  # a sum over pixels has no place in half precision
        target,
        ignore_index=ignore_index,
        align_corners=align_corners,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    if avg_non_ignore:
        mean = total / (target != ignore_index).sum().clamp(min=1)
    else:
        mean = total / max(target.numel(), 1)
    device = small.device.type
    stays_wide = device != "meta" and torch.is_autocast_enabled(device)
    return mean if stays_wide else mean.to(small.dtype)


def mined_cross_entropy(
    small: Tensor,
    target: Tensor,
    ignore_index: int,
    align_corners: bool,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The mean over hard pixels, as ANN and GALD were released; 0 without one."""
    return upsample_cross_entropy(
        small,
        target,
        ignore_index=ignore_index,
        align_corners=align_corners,
        keep_threshold=KEEP_THRESHOLD,
        min_kept=MIN_KEPT,
        label_smoothing=label_smoothing,
    )
