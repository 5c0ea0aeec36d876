"""Decoders of SegNeXt: three stages around a block of global context, or SegFormer's MLP."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, normalize

from attnops.nn import MSCA, Hamburger, NonLocal
from attnops.nn.functional import convolve, dense, is_channels_inner, without_autocast

GROUPS = 32


class ConvNormReLU(nn.Module):
    """Bias-free 1x1 convolution, GroupNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm = nn.GroupNorm(GROUPS, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(convolve(self.conv, x)))


class Residual(nn.Module):
    """ReLU(x + GroupNorm(conv(core(x)))), the frame that the Hamburger has too."""

    def __init__(self, channels: int, core: nn.Module) -> None:
        super().__init__()
        self.core = core
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.GroupNorm(GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(convolve(self.conv, self.core(x))))


class NonLocalContext(nn.Module):
    """x plus the non-local block's context, which starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = NonLocal(channels, channels // 2, share="none")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class CrissCross(nn.Module):
    """Attention of every position to its row and its column, run twice with one set of weights.

    x = x + gamma·context, with gamma zero at first. The position itself, in both the row and the
    column, counts once.

    Source: Huang et al., CCNet: Criss-Cross Attention for Semantic Segmentation (ICCV 2019),
    section 3.2 and 3.3.
    """

    def __init__(self, channels: int, recurrence: int = 2) -> None:
        super().__init__()
        self.recurrence = recurrence
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.recurrence):
            x = x + self.gamma * dense(self._context(x), is_channels_inner(x))
        return x

    def _context(self, x: Tensor) -> Tensor:
        query, key, value = (convolve(conv, x) for conv in (self.query, self.key, self.value))
        height = x.shape[2]
        column = torch.einsum("bchw,bcgw->bhwg", query, key)
        itself = torch.eye(height, dtype=torch.bool, device=x.device)[:, None]
        column = column.masked_fill(itself, -torch.inf)
        row = torch.einsum("bchw,bchv->bhwv", query, key)
        weights = torch.cat([column, row], dim=3).softmax(dim=3).to(value.dtype)
        column, row = weights.split([height, x.shape[3]], dim=3)
        context = torch.einsum("bhwg,bcgw->bchw", column, value)
        return context + torch.einsum("bhwv,bchv->bchw", row, value)


class ExpectationMaximisation(nn.Module):
    """Reconstruction of a map from bases found by soft k-means, ReLU.

    Three steps from the stored bases, without gradients: responsibilities of the bases for every
    position, then bases as normalised means. In training the stored bases follow those of the
    batch. As nothing passes gradients on, a convolution before it would not learn; it has none,
    which is also what the parameters and operations of SegNeXt's table 5 say.

    Source: Li et al., Expectation-Maximization Attention Networks for Semantic Segmentation
    (ICCV 2019), section 4.
    """

    def __init__(
        self, channels: int, bases: int = 64, steps: int = 3, momentum: float = 0.9
    ) -> None:
        super().__init__()
        self.steps, self.momentum = steps, momentum
        drawn = torch.randn(1, channels, bases) * (2.0 / bases) ** 0.5
        self.register_buffer("bases", normalize(drawn, dim=1))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            wide = x if x.dtype == torch.float64 else x.float()
            source = wide.flatten(2)
            bases = self.bases.to(wide.dtype).expand(x.shape[0], -1, -1)
            for _ in range(self.steps):
                shares = (source.mT @ bases).softmax(dim=2)
                means = source @ (shares / (1e-6 + shares.sum(dim=1, keepdim=True)))
                bases = normalize(means, dim=1)
            rebuilt = torch.relu(bases @ shares.mT).unflatten(2, x.shape[2:])
        if self.training:
            self.bases.lerp_(bases.mean(dim=0, keepdim=True).to(self.bases), 1 - self.momentum)
        return dense(rebuilt.to(x.dtype), is_channels_inner(x))


class ConvolutionalContext(nn.Module):
    """1x1 convolution, GELU, MSCA: the encoder's attention as context of the decoder."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.gate = MSCA(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(gelu(convolve(self.conv, x)))


def _hamburger(channels: int, rank: int, seed: int | None) -> nn.Module:
    return Hamburger(channels, rank=rank, seed=seed, norm_groups=GROUPS)


# name -> (channels, rank, seed) -> block of global context, [B, C, H, W] -> [B, C, H, W]
CONTEXTS: dict[str, Callable[[int, int, int | None], nn.Module]] = {
    "ham": _hamburger,
    "nl": lambda channels, rank, seed: NonLocalContext(channels),
    "cc": lambda channels, rank, seed: Residual(channels, CrissCross(channels)),
    "ema": lambda channels, rank, seed: Residual(channels, ExpectationMaximisation(channels)),
    "msca": lambda channels, rank, seed: Residual(channels, ConvolutionalContext(channels)),
}
DECODERS = (*CONTEXTS, "mlp")


class Decoder(nn.Module):
    """The last three stages, resized to the largest of them, squeezed, with global context.

    Source: Guo et al., SegNeXt (NeurIPS 2022), section 3.2, figure 3 (c), table 5.

    Args:
        widths: channels of the four stages.
        channels: of the squeezed map.
        context: key of `CONTEXTS`.
        rank: of the Hamburger's factorisation.
        seed: of its bases; None: drawn anew in every forward.
        dropout: rate of the Dropout2d at the end.

    Attributes:
        widths: channels of the maps that the squeeze joins.

    Shapes: four maps -> `[B, channels, h, w]` at the size of the second.
    """

    def __init__(
        self,
        widths: Sequence[int],
        channels: int,
        context: str,
        rank: int,
        seed: int | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.widths = tuple(widths[1:])
        self.squeeze = ConvNormReLU(sum(self.widths), channels)
        self.context = CONTEXTS[context](channels, rank, seed)
        self.align = ConvNormReLU(channels, channels)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = self.squeeze(_joined(features[1:]))
        return self.dropout(self.align(self.context(x)))


class MLPDecoder(nn.Module):
    """All four stages, projected and resized to the first, joined by one convolution.

    Source: Guo et al., SegNeXt (NeurIPS 2022), figure 3 (a); Xie et al., SegFormer (NeurIPS 2021),
    section 3.2.

    Args:
        widths: channels of the four stages.
        channels: of every projection and of the result.
        dropout: rate of the Dropout2d at the end.

    Shapes: four maps -> `[B, channels, h, w]` at the size of the first.
    """

    def __init__(self, widths: Sequence[int], channels: int, dropout: float) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.fuse = ConvNormReLU(len(widths) * channels, channels)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        maps = [convolve(p, x) for p, x in zip(self.projections, features, strict=True)]
        return self.dropout(self.fuse(_joined(maps)))


def _joined(maps: Sequence[Tensor]) -> Tensor:
    """The maps, in order, at the size of the first one."""
    first, *rest = maps
    resized = [interpolate(x, first.shape[2:], mode="bilinear") for x in rest]
    return torch.cat([first, *resized], dim=1)
