"""SegNeXt's block of maps without its norms and scales."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from attnops.nn import MSCA, MSCABlock
from attnops.nn.functional import (
    as_matrix,
    convolve,
    fold_batch_norm,
    has_fixed_statistics,
    is_pointwise,
    runs_as_built,
)
from attnops.nn.mscan import ConvolutionalAttention, ConvolutionalFeedForward

from .feed_forward import ResidualFeedForward


def can_fold_block(block: MSCABlock) -> bool:
    """Whether `block` and the parts that folding changes are as they were built."""
    attention, feed_forward = block.attention, block.feed_forward
    return (
        not block.training
        and runs_as_built(block, MSCABlock)
        and runs_as_built(attention, ConvolutionalAttention)
        and runs_as_built(attention.gate, MSCA)
        and runs_as_built(feed_forward, ConvolutionalFeedForward)
        and all(map(has_fixed_statistics, (block.norm1, block.norm2)))
        and all(map(is_pointwise, (attention.project_in, attention.project_out)))
        and all(map(is_pointwise, (feed_forward.expand, feed_forward.contract)))
    )


class FoldedBlock(nn.Module):
    """What an `MSCABlock` computes of maps in evaluation, without two passes for each branch.

    With the BatchNorm n(x) = g·x + t and the scale s of the first branch, whose attention adds its
    own input, x + s·(W·h + n(x)) = (s·W)·h + s·t + (1 + s·g)·x, where h is made of n(x) by a 1x1
    convolution, into which n goes. The second branch adds nothing but its scaled result.

    Args:
        block: in evaluation mode; its parts are taken over and changed.
    """

    def __init__(self, block: MSCABlock) -> None:
        super().__init__()
        attention = block.attention
        shift, factor = _affine(block.norm1)
        scale = block.scale1.detach().double()
        self.project_in = _fold_before(attention.project_in, shift, factor)
        self.gate = attention.gate
        self.project_out = _fold_after(attention.project_out, scale, scale * shift)
        kept = (1.0 + scale * factor).to(block.scale1.dtype)
        self.register_buffer("kept", kept[:, None, None].clone())
        _fold_before(block.feed_forward.expand, *_affine(block.norm2))
        _fold_after(block.feed_forward.contract, block.scale2.detach().double(), 0.0)
        self.feed_forward = ResidualFeedForward(block.feed_forward)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.gate(gelu(convolve(self.project_in, x)))
        x = torch.addcmul(convolve(self.project_out, hidden), self.kept, x)
        return self.feed_forward(x)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Shift and factor `[C]` of a BatchNorm, in float64."""
    shift, factor = fold_batch_norm(None, norm)
    return shift.detach().double(), factor.detach().double()


def _fold_before(conv: nn.Conv2d, shift: Tensor, factor: Tensor) -> nn.Conv2d:
    """Give a 1x1 convolution weight and bias for x, where it was one of factor·x + shift."""
    matrix = as_matrix(conv.weight.detach()).double()
    return _with(conv, matrix * factor, matrix @ shift, 1.0)


def _fold_after(conv: nn.Conv2d, scale: Tensor, shift: Tensor | float) -> nn.Conv2d:
    """Give a 1x1 convolution weight and bias of scale·conv(x) + shift."""
    matrix = as_matrix(conv.weight.detach()).double()
    return _with(conv, scale[:, None] * matrix, shift, scale)


def _with(
    conv: nn.Conv2d, matrix: Tensor, shift: Tensor | float, scale: Tensor | float
) -> nn.Conv2d:
    """`conv` with this weight, and the bias scale·bias + shift."""
    dtype = conv.weight.dtype
    bias = matrix.new_zeros(matrix.shape[0]) if conv.bias is None else conv.bias.detach().double()
    conv.weight = nn.Parameter(matrix[:, :, None, None].to(dtype), requires_grad=False)
    conv.bias = nn.Parameter((scale * bias + shift).to(dtype), requires_grad=False)
    return conv
