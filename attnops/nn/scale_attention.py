"""Attention over the scales of an image pyramid (Attention to Scale)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .._checks import check_choice, check_shape, check_tensors, given_python_numbers
from ..merge_scales import REDUCTIONS, merge_scales

SOURCES = ("concat", "first")


class ScaleAttention(nn.Module):
    """Merges the score maps of several image scales by weights that each pixel computes.

    weights = softmax over the scales of conv1x1(Dropout(ReLU(conv3x3(features)))); the result is
    the weighted sum of the score maps, resized on the fly (`attnops.merge_scales`), all resizes
    bilinear with aligned corners.

    Source: Chen et al., Attention to Scale: Scale-aware Semantic Image Segmentation (CVPR 2016),
    section 3. The text leaves open which scale's features enter ("concat": those of all scales,
    resized to the first one's, as published reimplementations do it) and the activation (ReLU).

    Args:
        in_channels: channels of the features of one scale.
        num_scales: S.
        hidden_channels: width between the two convolutions.
        dropout: rate of the dropout after the ReLU.
        source: "concat" of all features, or those of the "first" scale alone.
        reduce: "attention"; "mean" or "max" merge without weights, and have no parameters.

    Attributes:
        keep_weights: set it to True to keep `weights` `[B, S, H, W]` of the last forward.

    Shapes: features, S maps `[B, in_channels, h_s, w_s]`, and scores, S maps `[B, K, h_s', w_s']`,
        both in the order of the scales -> `[B, K, H, W]` at the size of the first features.

    Raises:
        ValueError: unknown option; another number of maps, or of another shape.

    Example:
        >>> import torch
        >>> from attnops.nn import ScaleAttention
        >>> sizes = (41, 31, 21)
        >>> features = [torch.randn(2, 32, n, n) for n in sizes]
        >>> scores = [torch.randn(2, 21, n, n) for n in sizes]
        >>> ScaleAttention(32, 3, hidden_channels=16)(features, scores).shape
        torch.Size([2, 21, 41, 41])
    """

    @given_python_numbers
    def __init__(
        self,
        in_channels: int,
        num_scales: int,
        hidden_channels: int = 512,
        dropout: float = 0.5,
        source: str = "concat",
        reduce: str = "attention",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_choice(name, "source", source, SOURCES)
        check_choice(name, "reduce", reduce, REDUCTIONS)
        if num_scales < 1:
            raise ValueError(f"{name}: num_scales must be at least 1, got {num_scales}")
        self.in_channels, self.num_scales = in_channels, num_scales
        self.source, self.reduce = source, reduce
        self.keep_weights = False
        self._kept: dict[str, Tensor] = {}  # shared with the stand-ins that evaluate in training
        self.head = None
        if reduce == "attention":
            joined = in_channels * (num_scales if source == "concat" else 1)
            self.head = nn.Sequential(
                nn.Conv2d(joined, hidden_channels, 3, padding=1),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Conv2d(hidden_channels, num_scales, 1),
            )

    def forward(self, features: Sequence[Tensor], scores: Sequence[Tensor]) -> Tensor:
        self._check(features, scores)
        if self.head is None:
            return merge_scales(scores, features[0][:, :1], self.reduce)
        size = features[0].shape[2:]
        chosen = features if self.source == "concat" else features[:1]
        maps = [
            x if x.shape[2:] == size else interpolate(x, size, mode="bilinear", align_corners=True)
            for x in chosen
        ]
        logits = self.head(torch.cat(maps, dim=1) if len(maps) > 1 else maps[0])
        if self.keep_weights:
            self._kept["weights"] = logits.detach().softmax(dim=1)
        return merge_scales(scores, logits)

    @property
    def weights(self) -> Tensor | None:
        """`[B, S, H, W]` of the last forward with `keep_weights`."""
        return self._kept.get("weights")

    def _check(self, features: Sequence[Tensor], scores: Sequence[Tensor]) -> None:
        name = type(self).__name__
        for what, maps in (("features", features), ("scores", scores)):
            if len(maps) != self.num_scales:
                raise ValueError(
                    f"{name}: {what} must be {self.num_scales} maps, one a scale, got {len(maps)}"
                )
        check_tensors(name, **{f"features[{i}]": x for i, x in enumerate(features)})
        for i, x in enumerate(features):
            check_shape(name, f"features[{i}]", x, ("B", self.in_channels, "h", "w"))
