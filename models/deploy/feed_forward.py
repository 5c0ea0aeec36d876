"""SegNeXt's feed-forward network with its residual, in one call of the C++ library."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnops.nn.functional import as_matrix, is_depthwise
from attnops.nn.mscan import ConvolutionalFeedForward

from .float_parts import float_parts
from .inner_ops import declare_feed_forward, runs_inner_ops, uses_tiles

PANEL = 16  # rows of a weight that stand together, kPanelRows of csrc/cpu/common/panels.h
TILE = 32  # terms of a product by AMX


class ResidualFeedForward(nn.Module):
    """x + W2·gelu(depthwise(W1·x)), with biases, of maps.

    Where the C++ library is there, `lay_out` makes it one op of it, to which the hidden map, 4 to 8
    times as large as x, is never a map in memory.

    Args:
        feed_forward: without norms; it is taken over.
    """

    def __init__(self, feed_forward: ConvolutionalFeedForward) -> None:
        super().__init__()
        self.parts: ConvolutionalFeedForward | None = feed_forward

    def lay_out(self, dtype: torch.dtype) -> None:
        """Make it one op, with products in `dtype`, float32 or bfloat16, if that can be."""
        if not runs_inner_ops() or not is_depthwise(self.parts.depthwise, 3, 3):
            return
        declare_feed_forward()
        for name, value in packed(self.parts, dtype).items():
            self.register_buffer(name, value)
        self.parts = None

    def forward(self, x: Tensor) -> Tensor:
        if self.parts is not None:
            return x + self.parts(x)
        x = x.float().contiguous(memory_format=torch.channels_last)
        return torch.ops.attnops_cpu.packed_feed_forward(
            x, self.expand, self.contract, self.inner, self.outer
        )


def packed(parts: ConvolutionalFeedForward, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights of `parts` as csrc/cpu/feed_forward/host.h wants them: those of the 1x1 convolutions
    in `dtype`, float32 in bfloat16 parts where AMX multiplies it; the depthwise one's with the
    biases around it, and the last bias, in float32.
    """
    expand, contract = (as_matrix(conv.weight) for conv in (parts.expand, parts.contract))
    sides = (-(-side // PANEL) * PANEL for side in expand.shape)
    in_tiles = dtype == torch.float32 and uses_tiles() and all(side % TILE == 0 for side in sides)
    laid_out = panels_of_parts if in_tiles else lambda matrix: panels(matrix, dtype)
    depthwise = parts.depthwise
    taps = depthwise.weight.flatten(1).mT
    inner = torch.stack([*taps, _bias(depthwise), _bias(parts.expand)])
    return {
        "expand": laid_out(expand),
        "contract": laid_out(contract),
        "inner": _padded(inner, 1, PANEL),
        "outer": _padded(_bias(parts.contract)[None], 1, PANEL)[0],
    }


def _bias(conv: nn.Conv2d) -> Tensor:
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()


def _padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """`matrix` with zeros, so that its sides are multiples of `rows` and `columns`."""
    height, width = matrix.shape
    return nn.functional.pad(matrix.detach(), (0, -width % columns, 0, -height % rows)).contiguous()


def panels(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix as csrc/cpu/common/panels.h wants it, with zeros up to multiples of 16.

    Shapes: `[rows / 16, columns, 16]` in float32, `[rows / 16, columns / 2, 16, 2]` in bfloat16.
    """
    together = 1 if dtype == torch.float32 else 2
    panels = _padded(matrix, PANEL, PANEL).to(dtype)
    panels = panels.unflatten(1, (-1, together)).unflatten(0, (-1, PANEL))
    return panels.transpose(1, 2).contiguous()


def panels_of_parts(matrix: Tensor) -> Tensor:
    """The same in float32, each panel for one of the three parts after the other.

    Shape: `[rows / 16, 3, columns / 2, 16, 2]` in bfloat16.
    """
    return torch.stack([panels(part, torch.bfloat16) for part in float_parts(matrix)], 1)
