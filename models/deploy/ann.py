"""ANN's first block and the convolution behind it as one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from attnops.nn import AFNB
from attnops.nn.ann import Fusion
from attnops.nn.functional import as_matrix, is_pointwise, runs_as_built
from attnops.nn.pyramid_attention import PyramidAttention

from ..ann import ANN

ALIGNED = 16  # channels that convolutions multiply at a time


def can_fold_fusion(network: ANN) -> bool:
    """Whether what stands between stage 4 and the 3x3 convolution is as it was built, and linear
    but for the attention; its BatchNorm has been folded.
    """
    block, conv = network.fusion, network.context[0]
    if network.training or not runs_as_built(block, AFNB) or not runs_as_built(conv, nn.Conv2d):
        return False
    fusion, attention = block.fusion, block.attention
    return (
        runs_as_built(fusion, Fusion)
        and not fusion.relu
        and type(fusion.bn) is nn.Identity
        and all(runs_as_built(x, nn.Dropout2d) for x in (fusion.dropout, network.dropout))
        and runs_as_built(attention, PyramidAttention)
        and all(map(is_pointwise, (fusion.conv, attention.out, attention.value)))
        and attention.reduce == "mean"
        and conv.groups == 1
        and conv.padding_mode == "zeros"
    )


def fold_fusion(network: ANN) -> None:
    """Leave out the 1x1 convolution of cat[context, high], 2048 channels to as many, in place.

    With the context O·a + o of what the attention gives, a, the 3x3 convolution K behind it is

        K(Wc·(O·a + o) + Wx·x + w) = K(cat[Wx, Wc·O, Wc·o + w] · cat[x, a, 1]),

    a 3x3 convolution of cat[x, a, 1]. The 1, which the convolution's border of zeros cuts off,
    comes out of the attention, whose weights sum to 1, for a value that is 1 at every anchor.

    Args:
        network: for which `can_fold_fusion` holds.
    """
    attention, fusion, conv = network.fusion.attention, network.fusion.fusion, network.context[0]
    mix, direct = as_matrix(_wide(fusion.conv.weight)).tensor_split(
        [fusion.context_channels], dim=1
    )
    out = as_matrix(_wide(attention.out.weight))
    shift = mix @ _bias(attention.out) + _bias(fusion.conv)
    values = out.shape[1]
    behind = torch.cat([direct, mix @ out, shift[:, None]], dim=1)
    behind = pad(behind, (0, -behind.shape[1] % ALIGNED))
    weight = torch.einsum("omij,mc->ocij", _wide(conv.weight), behind)

    added = behind.shape[1] - direct.shape[1] - values  # 1, and zeros up to a multiple
    value = attention.value
    one = torch.arange(added, dtype=torch.float64) == 0
    _set(value, pad(_wide(value.weight), (0, 0) * 3 + (0, added)), torch.cat([_bias(value), one]))
    _set(conv, weight, None if conv.bias is None else _bias(conv))
    attention.out = nn.Identity()
    network.fusion = _Beside(attention)
    network.fusion.eval()


class _Beside(nn.Module):
    """cat[high, attention(low, high)]."""

    def __init__(self, attention: PyramidAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return torch.cat([high, self.attention(low, high)], dim=1)


def _wide(x: Tensor) -> Tensor:
    return x.detach().double()


def _bias(conv: nn.Conv2d) -> Tensor:
    return _wide(conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias)


def _set(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> None:
    dtype = conv.weight.dtype
    conv.out_channels, conv.in_channels = weight.shape[:2]
    conv.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    conv.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
