"""Norms as deployments compile them, what they leave out, and SegNeXt's folded decoder."""

from __future__ import annotations

import copy

import pytest
import torch
from model_checks import shake
from torch import Tensor, nn
from torch.nn.functional import group_norm, layer_norm

from attnops.models.decoders import Decoder
from attnops.models.deploy import norms
from attnops.models.deploy.compilation import drop_checks
from attnops.models.deploy.decoder import FoldedDecoder, can_fold_decoder

SIZES = ((2, 12, 7, 9), (1, 24, 1, 33), (3, 6, 16, 1))


def values(shape: tuple[int, ...], dtype: torch.dtype, shift: float) -> tuple[Tensor, ...]:
    """A map, channels_last, far from zero, and an affine map of its channels."""
    x = (torch.randn(shape) + shift).to(memory_format=torch.channels_last)
    weight, bias = torch.rand(shape[1]) + 0.5, torch.randn(shape[1])
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def check(found: Tensor, plain: Tensor, exact: Tensor) -> None:
    """At most twice the error of PyTorch's own."""
    assert found.dtype == plain.dtype and found.shape == plain.shape
    budget = 2 * (plain - exact).abs().max() + 1e-6 * exact.abs().max()
    assert (found - exact).abs().max() <= budget


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shift", [0.0, 30.0])
@pytest.mark.parametrize("shape", SIZES)
def test_norms_are_those_of_pytorch(shape, shift, dtype):
    x, weight, bias = values(shape, dtype, shift)
    wide = x.double(), weight.double(), bias.double()
    for groups in (1, 3, 6):
        exact = group_norm(wide[0], groups, *wide[1:], eps=1e-3)
        plain = group_norm(x, groups, weight, bias, eps=1e-3)
        check(norms.group_norm(x, groups, weight, bias, 1e-3), plain, exact)
    bare = norms.group_norm(x, 3)
    check(bare, group_norm(x, 3), group_norm(wide[0], 3))
    rows, wide_rows = x.movedim(1, -1), wide[0].movedim(1, -1)
    exact = layer_norm(wide_rows, (shape[1],), *wide[1:], eps=1e-3)
    plain = layer_norm(rows, (shape[1],), weight, bias, eps=1e-3)
    check(norms.layer_norm(rows, (shape[1],), weight, bias, 1e-3), plain, exact)
    ends = norms.layer_norm(rows, rows.shape[2:])
    check(ends, layer_norm(rows, rows.shape[2:]), layer_norm(wide_rows, rows.shape[2:]))


class Normed(nn.Module):
    """A map of any size by way of GroupNorm and LayerNorm, and vectors by way of GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.groups, self.layer, self.vectors = (
            nn.GroupNorm(2, 8),
            nn.LayerNorm(8),
            nn.GroupNorm(4, 8),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.groups(x).movedim(1, -1)).movedim(-1, 1)
        return x * self.vectors(x.mean((2, 3)))[..., None, None]


def test_norms_of_maps_are_replaced_in_graphs():
    model = shake(Normed()).eval()
    free = torch.export.Dim.DYNAMIC
    shapes = ({0: free, 2: free, 3: free},)
    program = torch.export.export(model, (torch.randn(2, 8, 6, 10),), dynamic_shapes=shapes)
    program = program.run_decompositions(dict(norms.NORMS))
    left = [str(node.target) for node in program.graph.nodes if "norm" in str(node.target)]
    assert left == ["aten.group_norm.default"], "that of vectors"
    x = torch.randn(3, 8, 5, 7)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-5)


class Unused(nn.Module):
    """Convolves, and once more for nothing but a cast."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            self.unused(x).float()
            return self.used(x).float()


def test_what_only_checks_look_at_is_not_computed():
    x = torch.randn(1, 3, 6, 5)
    program = torch.export.export(Unused().eval(), (x,)).run_decompositions({})
    wanted = program.module()(x)
    drop_checks(program)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("convolution" in target or "conv2d" in target for target in targets) == 1
    assert not any("_assert_tensor_metadata" in target for target in targets)
    assert torch.equal(program.module()(x), wanted)


def decoder(context: str) -> tuple[Decoder, list[Tensor]]:
    made = shake(Decoder((8, 12, 20, 24), 64, context, 4, 0, 0.1)).eval()
    sizes = ((8, 24, 18), (12, 12, 9), (20, 7, 5), (24, 3, 2))
    return made, [torch.randn(2, *size) for size in sizes]


@pytest.mark.parametrize("context", ["ham", "ema"])
def test_the_decoder_squeezes_maps_before_it_resizes_them(context):
    plain, features = decoder(context)
    assert can_fold_decoder(plain)
    folded = FoldedDecoder(copy.deepcopy(plain))
    assert [conv.in_channels for conv in folded.squeezes] == [12, 20, 24]
    with torch.no_grad():
        wanted, found = plain(features), folded(features)
        exact = copy.deepcopy(plain).double()([x.double() for x in features])
    check(found, wanted, exact)
    for layout in (torch.contiguous_format, torch.channels_last):
        rough = [x.to(torch.bfloat16, memory_format=layout) for x in features]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            wanted, found = plain(rough), folded(rough)
        assert found.dtype == wanted.dtype
        assert (found - exact).norm() <= 1.5 * (wanted - exact).norm()


def test_a_decoder_that_somebody_watches_stays():
    for part in ("squeeze", "squeeze.conv", "dropout"):
        plain, _ = decoder("ham")
        plain.get_submodule(part).register_forward_hook(lambda *args: None)
        assert not can_fold_decoder(plain)
    assert not can_fold_decoder(decoder("ham")[0].train())
