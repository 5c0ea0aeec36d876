"""SegNeXt's decoder with its maps squeezed before they are resized."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from attnops.nn.functional import as_matrix, convolve, is_pointwise, runs_as_built

from ..decoders import ConvNormReLU, Decoder


def can_fold_decoder(decoder: Decoder) -> bool:
    """Whether `decoder` and the parts that folding changes are as they were built."""
    squeeze = decoder.squeeze
    return (
        not decoder.training
        and runs_as_built(decoder, Decoder)
        and runs_as_built(squeeze, ConvNormReLU)
        and runs_as_built(decoder.dropout, nn.Dropout2d)
        and is_pointwise(squeeze.conv)
        and squeeze.conv.bias is None
    )


class FoldedDecoder(nn.Module):
    """What a `Decoder` computes in evaluation, without the map of all channels.

    The squeeze, a 1x1 convolution of maps that are resized to the first one and concatenated,
    commutes with the resize: each map is squeezed at its own size, and the results are resized
    and summed. For SegNeXt-T that is a quarter of the multiply-adds.

    Args:
        decoder: in evaluation mode; its parts are taken over.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        matrix = as_matrix(decoder.squeeze.conv.weight.detach())
        self.squeezes = nn.ModuleList()
        for part in matrix.split(decoder.widths, dim=1):
            with torch.device("meta"):  # its weights are drawn nowhere
                conv = nn.Conv2d(part.shape[1], part.shape[0], 1, bias=False)
            conv.weight = nn.Parameter(part[:, :, None, None].clone(), requires_grad=False)
            self.squeezes.append(conv)
        self.norm = decoder.squeeze.norm
        self.context, self.align = decoder.context, decoder.align
        self.eval()

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        conv, *convs = self.squeezes
        first, *maps = features[1:]
        size = first.shape[2:]
        others = [
            interpolate(convolve(squeeze, x).float(), size, mode="bilinear")
            for squeeze, x in zip(convs, maps, strict=True)
        ]
        total = convolve(conv, first)
        total = total + sum(others).to(total.dtype)
        return self.align(self.context(torch.relu(self.norm(total))))
