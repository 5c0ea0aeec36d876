"""The asymmetric pyramid non-local blocks (Zhu et al., ICCV 2019), as released and as printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_shape, check_tensors, given_python_numbers
from ._order import Ordered
from .functional import (
    as_matrix,
    fold_batch_norm,
    has_fixed_statistics,
    is_pointwise,
    pointwise,
    runs_as_built,
    scale_outputs,
)
from .pyramid_attention import PyramidAttention


class Fusion(nn.Module):
    """Convolution of cat[context, x], BatchNorm, and Dropout2d, without the concatenation.

    Inside the blocks, the context's half of the 1x1 convolution is handed to the attention as
    `mix`, which applies it to the anchors where that is cheaper (`fuse_context`).

    Args:
        context_channels: channels of the context, first in the concatenation.
        channels: channels of x.
        out_channels: channels of the result.
        relu: whether a ReLU follows the BatchNorm (APNB: yes, AFNB: no).
        dropout: rate of the Dropout2d.
    """

    def __init__(
        self, context_channels: int, channels: int, out_channels: int, relu: bool, dropout: float
    ) -> None:
        super().__init__()
        self.context_channels = context_channels
        self.conv = nn.Conv2d(context_channels + channels, out_channels, 1)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = relu
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, context: Tensor, x: Tensor) -> Tensor:
        """Result `[B, out_channels, H, W]` of the context and x `[B, C, H, W]`."""
        if is_pointwise(self.conv):
            return self.add(lambda mix: pointwise(context, mix, None, lean=True), x)
        return self._finish(self.bn(self.conv(torch.cat([context, x], dim=1))))

    def add(self, mixed: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The result for a plain 1x1 convolution; `mixed` applies the context's half of it.

        Args:
            mixed: gives the context under a 1x1 convolution without bias, weight `[M, Co]`.
            x: the map.
        """
        weight = as_matrix(self.conv.weight)
        mix, weight = weight.tensor_split([self.context_channels], dim=1)
        bias, bn, factor = self.conv.bias, self.bn, None
        if has_fixed_statistics(bn):
            bias, factor = fold_batch_norm(bias, bn)
            mix, bn = scale_outputs(mix, factor), None
        out = pointwise(x, weight, bias, factor, lean=True)
        out = out + mixed(mix)
        return self._finish(out if bn is None else bn(out))

    def _finish(self, x: Tensor) -> Tensor:
        return self.dropout(torch.relu(x) if self.relu else x)


def fuse_context(fusion: nn.Module, attention: nn.Module, low: Tensor, high: Tensor) -> Tensor:
    """fusion(attention(low, high), high), together where nobody looks at what is between them."""
    together = (
        runs_as_built(fusion, Fusion)
        and runs_as_built(attention, PyramidAttention)
        and is_pointwise(fusion.conv)
    )
    if together:
        return fusion.add(lambda mix: attention(low, high, mix), high)
    return fusion(attention(low, high), high)


class APNB(Ordered):
    """Asymmetric pyramid non-local block: a map attends to pyramid anchors of itself.

    Source: Zhu et al., Asymmetric Non-local Neural Networks for Semantic Segmentation (ICCV 2019),
    section 3.2, figure 3. The authors' code differs from the text: key and *query* share their
    projection, which has BatchNorm and ReLU; these are the defaults. `share="key_value",
    projection="linear"` is the paper's text and equations.

    With x the input, context = out(softmax(qᵀ·k / sqrt(key_channels))·v) and
    y = Dropout2d(ReLU(BN(conv1x1(cat[context, x])))). `out` starts at zero, so does the context.

    Args:
        in_channels: C of the input.
        key_channels: channels of query and key.
        value_channels: channels of the value.
        out_channels: channels of the context and of the result; None: `in_channels`.
        sizes: pyramid grids; S = sum of n² anchors.
        reduce: "mean" or "max" pooling.
        share: "key_query" (released code) or "key_value" (paper).
        projection: "bn_relu" (released code) or "linear" (paper's equations).
        fuse: False: return the context alone, the block of the paper's table 1.
        dropout: rate of the Dropout2d after fusion.

    Raises:
        ValueError: unknown option, or share="key_value" with key_channels != value_channels.

    Example:
        >>> import torch
        >>> from attnops.nn import APNB
        >>> APNB(64, key_channels=16, value_channels=16)(torch.randn(2, 64, 24, 32)).shape
        torch.Size([2, 64, 24, 32])
    """

    @given_python_numbers
    def __init__(
        self,
        in_channels: int,
        key_channels: int = 256,
        value_channels: int = 256,
        out_channels: int | None = None,
        sizes: Sequence[int] = (1, 3, 6, 8),
        reduce: str = "mean",
        share: str = "key_query",
        projection: str = "bn_relu",
        fuse: bool = True,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        check_choice("APNB", "share", share, ("key_query", "key_value"))
        out_channels = in_channels if out_channels is None else out_channels
        self.in_channels = in_channels
        self.attention = PyramidAttention(
            in_channels,
            in_channels,
            key_channels,
            value_channels,
            out_channels,
            sizes,
            reduce,
            projection,
            share,
        )
        self.fusion = None
        if fuse:
            self.fusion = Fusion(out_channels, in_channels, out_channels, True, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_channels, H, W]` -> `[B, out_channels, H, W]`.

        Raises:
            ValueError: wrong number of dimensions or channels.
        """
        _check_map("APNB", "x", x, self.in_channels)
        if self.fusion is None:
            return self.attention(x, x)
        return fuse_context(self.fusion, self.attention, x, x)


class AFNB(Ordered):
    """Asymmetric fusion non-local block: a high-level map attends to anchors of a low-level one.

    Source: Zhu et al., Asymmetric Non-local Neural Networks for Semantic Segmentation (ICCV 2019),
    section 3.3, eq. (14) to (17), figure 3. Query from `high`, key and value from `low`, nothing
    shared; y = Dropout2d(BN(conv1x1(cat[context, high]))), without a ReLU, as the authors' code
    has it.

    Args:
        low_channels: channels of the low-level map.
        high_channels: channels of the high-level map.
        key_channels: channels of query and key.
        value_channels: channels of the value.
        out_channels: channels of the context and of the result; None: `high_channels`.
        sizes: pyramid grids; S = sum of n² anchors.
        reduce: "mean" or "max" pooling.
        projection: "bn_relu" (released code) or "linear" (paper's equations).
        fuse: False: return the context alone.
        dropout: rate of the Dropout2d after fusion.

    Raises:
        ValueError: unknown option.

    Example:
        >>> import torch
        >>> from attnops.nn import AFNB
        >>> block = AFNB(32, 64, key_channels=16, value_channels=16)
        >>> block(torch.randn(2, 32, 48, 64), torch.randn(2, 64, 24, 32)).shape
        torch.Size([2, 64, 24, 32])
    """

    @given_python_numbers
    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        key_channels: int = 256,
        value_channels: int = 256,
        out_channels: int | None = None,
        sizes: Sequence[int] = (1, 3, 6, 8),
        reduce: str = "mean",
        projection: str = "bn_relu",
        fuse: bool = True,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        out_channels = high_channels if out_channels is None else out_channels
        self.low_channels = low_channels
        self.high_channels = high_channels
        self.attention = PyramidAttention(
            low_channels,
            high_channels,
            key_channels,
            value_channels,
            out_channels,
            sizes,
            reduce,
            projection,
            None,
        )
        self.fusion = None
        if fuse:
            self.fusion = Fusion(out_channels, high_channels, out_channels, False, dropout)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """low `[B, low_channels, h, w]`, high `[B, high_channels, H, W]` -> `[B, Co, H, W]`.

        Raises:
            ValueError: wrong number of dimensions or channels, or different batch sizes.
        """
        _check_map("AFNB", "low", low, self.low_channels)
        _check_map("AFNB", "high", high, self.high_channels)
        if low.shape[0] != high.shape[0]:
            raise ValueError(
                f"AFNB: low and high must have one batch size, got {low.shape[0]} and "
                f"{high.shape[0]}"
            )
        if self.fusion is None:
            return self.attention(low, high)
        return fuse_context(self.fusion, self.attention, low, high)


def _check_map(block: str, name: str, x: Tensor, channels: int) -> None:
    check_tensors(block, **{name: x})
    check_shape(block, name, x, ("B", channels, "H", "W"))
