"""SegNeXt's encoder, MSCAN, of the official repository and mmsegmentation."""

from __future__ import annotations

from torch import Tensor, nn

from ..nn import MSCABlock
from ..nn.functional import dense, is_channels_inner, map_of_tokens
from . import _segnext
from ._derived import Behaviour, derived, stand_in
from ._parts import Candidate, Unsupported, has_children


class KeepsLayout(Behaviour):
    """The maps of the stages have the layout that the first convolutions gave them.

    The originals copy each into the contiguous one, and a channels_last network copies it back.
    """

    adds = "maps in the layout of the images"

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = []
        x = images
        for i in range(1, self.num_stages + 1):
            x, height, width = getattr(self, f"patch_embed{i}")(x)
            inner = is_channels_inner(x.mT)
            for block in getattr(self, f"block{i}"):
                x = block(x, height, width)
            x = getattr(self, f"norm{i}")(x)
            x = dense(map_of_tokens(x, height, width), inner)
            maps.append(x)
        return maps


def encoder(module: nn.Module) -> list[Candidate] | None:
    """Children patch_embed1, block1, norm1, ... where all blocks are SegNeXt's."""
    count = getattr(module, "num_stages", None)
    if not isinstance(count, int) or count < 1:
        return None
    numbers = range(1, count + 1)
    parts = [f"{name}{i}" for i in numbers for name in ("patch_embed", "block", "norm")]
    if not has_children(module, *parts):
        return None
    blocks = [block for i in numbers for block in getattr(module, f"block{i}").children()]
    try:
        if not blocks or not all(_is_known(block) for block in blocks):
            return None
    except Unsupported:
        return None  # which the report says of the block
    kind = derived((KeepsLayout,), type(module))
    first = next(layer for layer in module.patch_embed1.modules() if isinstance(layer, nn.Conv2d))
    inputs = ((2, first.in_channels, 50, 70),)
    return [Candidate(stand_in(module, kind), inputs, derived=kind)]


def _is_known(block: nn.Module) -> bool:
    return isinstance(block, MSCABlock) or _segnext.block(block) is not None
