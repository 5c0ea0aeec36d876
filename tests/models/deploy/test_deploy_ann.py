"""ANN's first block and the convolution behind it, folded together."""

from __future__ import annotations

import copy

import pytest
import torch
from model_checks import shake
from tiny_networks import SIZE, tiny_network

from attnops.models.deploy.ann import can_fold_fusion
from attnops.models.deploy.folding import fold


@pytest.mark.parametrize("family", ["ann", "ann_mmseg"])
def test_the_block_goes_into_the_convolution_behind_it(family):
    """With the border of zeros, which the block's bias must not enter."""
    images = torch.randn(2, 3, *SIZE)
    plain = shake(tiny_network(family)).eval()
    folded = copy.deepcopy(plain)
    fold(folded, images)
    block, conv = plain.fusion, folded.context[0]
    extra = conv.in_channels - block.high_channels - block.attention.value.out_channels
    assert 0 < extra <= 16 and conv.in_channels % 16 == 0
    assert not hasattr(folded.fusion, "fusion"), "the 1x1 convolution is gone"
    with torch.no_grad():
        wanted, found = plain(images)["out"], folded(images)["out"]
        exact = copy.deepcopy(plain).double()(images.double())["out"]
    budget = 2 * (wanted - exact).abs().max() + 1e-6 * exact.abs().max()
    assert (found - exact).abs().max() <= budget


@pytest.mark.parametrize("part", ["fusion", "fusion.fusion.conv", "context.0", "dropout"])
def test_what_somebody_watches_stays(part):
    plain, images, seen = shake(tiny_network("ann")).eval(), torch.randn(1, 3, *SIZE), []
    folded = copy.deepcopy(plain)
    folded.get_submodule(part).register_forward_hook(lambda *args: seen.append(args))
    fold(folded, images)
    seen.clear()
    with torch.no_grad():
        wanted, found = plain(images)["out"], folded(images)["out"]
    assert seen and not can_fold_fusion(folded)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
