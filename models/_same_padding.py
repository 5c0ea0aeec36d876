"""TensorFlow's padding around convolutions, in sizes that a compiler can reckon with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from attnops.nn.functional import runs_as_built


class SamePadding(nn.Module):
    """Zeros around a map, so that a strided convolution gives ceil(size / stride) results.

    timm's layers compute the same number of zeros by a quotient of floats and a maximum, which
    torch.export does not write down for sizes that are free. And as an expression of those of every
    strided convolution before stands in each index of the last maps, Inductor takes longer than
    anyone waits to simplify it. Here a padded size is stride·ceil(size / stride) plus a constant,
    of which the convolution leaves the quotient.

    Args:
        extents: (kernel - 1)·dilation + 1 of the convolution behind it, at least its stride.
        strides: of that convolution.
    """

    def __init__(self, extents: tuple[int, int], strides: tuple[int, int]) -> None:
        super().__init__()
        self.extents, self.strides = extents, strides

    def forward(self, x: Tensor) -> Tensor:
        amounts: list[int] = []
        for size, extent, stride in zip(x.shape[2:], self.extents, self.strides, strict=True):
            whole = (size + stride - 1) // stride * stride
            total = whole - size + extent - stride
            before = total // 2
            amounts = [before, total - before, *amounts]
        return pad(x, amounts)


def replace_same_padding(network: nn.Module) -> None:
    """Put `with_same_padding` wherever there is one to put, in place."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            replacement = with_same_padding(child)
            if replacement is not None:
                setattr(module, name, replacement)


def with_same_padding(conv: nn.Module) -> nn.Sequential | None:
    """A padding and a plain convolution in place of timm's `Conv2dSame`, whose weights they take
    over; None for anything else, and where its kernel is smaller than its stride.
    """
    try:
        from timm.layers import Conv2dSame
    except ImportError:
        return None
    if not runs_as_built(conv, Conv2dSame) or hasattr(conv, "parametrizations"):
        return None
    reach = zip(conv.kernel_size, conv.dilation, strict=True)
    extents = tuple((kernel - 1) * dilation + 1 for kernel, dilation in reach)
    if any(extent < stride for extent, stride in zip(extents, conv.stride, strict=True)):
        return None
    with torch.device("meta"):  # its weights are drawn nowhere
        plain = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            dilation=conv.dilation,
            groups=conv.groups,
        )
    plain.weight, plain.bias = conv.weight, conv.bias
    return nn.Sequential(SamePadding(extents, conv.stride), plain.train(conv.training))
