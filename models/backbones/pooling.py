"""Max pooling that compiles once for all sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad


class MaxPool3x3(nn.MaxPool2d):
    """3x3 max pooling with padding 1, of stride 1 or 2.

    PyTorch's own asks whether the sides are even when it is compiled for symbolic sizes, so that
    every network would be compiled anew for every combination. Where that cannot be told, this one
    takes the same windows out of those of stride 1.

    Args:
        stride: of the windows.
        ceil_mode: also a window that begins in the last column or row, if that is left over.
    """

    def __init__(self, stride: int, ceil_mode: bool = False) -> None:
        super().__init__(3, stride, padding=1, ceil_mode=ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() or self.stride == 1:
            return super().forward(x)
        if all(_parity_is_known(side) for side in x.shape[2:]):
            return super().forward(x)
        if self.ceil_mode:  # a window around the place behind the last one
            x = pad(x, (0, 1, 0, 1), value=float("-inf"))
        return max_pool2d(x, 3, 1, padding=1)[:, :, ::2, ::2]


def _parity_is_known(side: int) -> bool:
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # slow to import

    return statically_known_true(side % 2 == 0) or statically_known_true(side % 2 == 1)
