"""SegNeXt's decoders against plain formulations of the papers, position by position (float64).

The Hamburger's, the published one, is held against the published network in test_models_segnext.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, group_norm, interpolate

from attnops.models.decoders import Decoder, MLPDecoder

WIDTHS, CHANNELS = (8, 12, 20, 24), 64
SIZES = ((12, 18), (7, 9), (4, 5), (2, 3))


def shaken(module: nn.Module) -> nn.Module:
    """Weights of which none is zero, and affine parameters away from 1 and 0."""
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.dim() == 4 else 0.5
            parameter.normal_(std=scale)
    return module.double()


def features(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, width, *size) for width, size in zip(WIDTHS, SIZES, strict=True)]
    return [torch.randn(shape, generator=generator).double() for shape in shapes]


def convolved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    padding = tuple(side // 2 for side in conv.weight.shape[2:])
    return conv2d(x, conv.weight, conv.bias, padding=padding, groups=conv.groups)


def squeezed(part: nn.Module, x: Tensor) -> Tensor:
    """Convolution, GroupNorm of 32 groups, ReLU."""
    return group_norm(convolved(part.conv, x), 32, part.norm.weight, part.norm.bias).relu()


def framed(part: nn.Module, x: Tensor, core) -> Tensor:
    """ReLU(x + GroupNorm(convolution(core(x))))."""
    y = convolved(part.conv, core(part.core, x))
    return (x + group_norm(y, 32, part.norm.weight, part.norm.bias)).relu()


def non_local(block: nn.Module, x: Tensor) -> Tensor:
    """Every position attends to every position, scores over the root of the channels."""
    q, k, v = (
        convolved(conv, x).flatten(2) for conv in (block.query.conv, block.key.conv, block.value)
    )
    out = torch.zeros_like(v)
    for n in range(q.shape[2]):
        scores = torch.stack([(q[:, :, n] * k[:, :, m]).sum(1) for m in range(k.shape[2])], 1)
        weights = (scores / q.shape[1] ** 0.5).softmax(1)
        out[:, :, n] = (weights[:, None] * v).sum(2)
    return x + convolved(block.out, out.view(*v.shape[:2], *x.shape[2:]))


def criss_cross(core: nn.Module, x: Tensor) -> Tensor:
    """Twice: each position attends to its row and its column, H + W - 1 positions in all."""
    for _ in range(2):
        q, k, v = (convolved(conv, x) for conv in (core.query, core.key, core.value))
        height, width = x.shape[2:]
        context = torch.zeros_like(v)
        for i in range(height):
            for j in range(width):
                cross = {(i, m) for m in range(width)} | {(m, j) for m in range(height)}
                rows, columns = map(list, zip(*sorted(cross), strict=True))
                weights = torch.einsum("bc,bcn->bn", q[:, :, i, j], k[:, :, rows, columns])
                near = v[:, :, rows, columns]
                context[:, :, i, j] = torch.einsum("bn,bcn->bc", weights.softmax(1), near)
        x = x + core.gamma * context
    return x


def expectation_maximisation(core: nn.Module, x: Tensor) -> Tensor:
    """Three steps of soft k-means from the stored bases, then the map in terms of the bases."""
    out = []
    for sample in x.flatten(2):
        bases = core.bases[0].double()
        for _ in range(3):
            shares = torch.stack([(bases.T @ column).softmax(0) for column in sample.T])
            means = (sample @ shares) / (1e-6 + shares.sum(0))
            bases = means / means.norm(dim=0)
        out.append((bases @ shares.T).relu())
    return torch.stack(out).view_as(x)


def convolutional(core: nn.Module, x: Tensor) -> Tensor:
    """Convolution, GELU, and the encoder's gate."""
    u, gate = gelu(convolved(core.conv, x)), core.gate
    local = convolved(gate.local, u)
    total = local
    for row, column in zip(gate.rows, gate.columns, strict=True):
        total = total + convolved(column, convolved(row, local))
    return convolved(gate.mix, total) * u


CONTEXTS = {
    "nl": lambda part, x: non_local(part.block, x),
    "cc": lambda part, x: framed(part, x, criss_cross),
    "ema": lambda part, x: framed(part, x, expectation_maximisation),
    "msca": lambda part, x: framed(part, x, convolutional),
}


def resized(maps: list[Tensor], size: torch.Size) -> list[Tensor]:
    return [interpolate(m, size, mode="bilinear", align_corners=False) for m in maps]


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_decoder_written_out(context):
    decoder = Decoder(WIDTHS, CHANNELS, context, 4, None, 0.0)
    decoder = shaken(decoder).eval()
    maps = features()
    # Stages 2, 3 and 4, in this order, at the size of stage 2.
    joined = torch.cat(resized(maps[1:], maps[1].shape[2:]), dim=1)
    with torch.no_grad():
        x = squeezed(decoder.squeeze, joined)
        wanted = squeezed(decoder.align, CONTEXTS[context](decoder.context, x))
        torch.testing.assert_close(decoder(maps), wanted)


def test_the_mlp_decoder_written_out():
    decoder = shaken(MLPDecoder(WIDTHS, CHANNELS, 0.0)).eval()
    maps = features()
    with torch.no_grad():
        projected = [convolved(p, m) for p, m in zip(decoder.projections, maps, strict=True)]
        joined = torch.cat(resized(projected, maps[0].shape[2:]), dim=1)
        torch.testing.assert_close(decoder(maps), squeezed(decoder.fuse, joined))


@pytest.mark.parametrize("context", ["nl", "cc", "msca"])
def test_contexts_train_by_the_gradients_of_their_formulas(context):
    part = shaken(Decoder(WIDTHS, CHANNELS, context, 4, None, 0.0)).context
    x, grad = torch.randn(2, 2, CHANNELS, 3, 4).double().unbind()
    leaves = [x.requires_grad_(), *part.parameters()]
    found = torch.autograd.grad(part(x), leaves, grad)
    wanted = torch.autograd.grad(CONTEXTS[context](part, x), leaves, grad)
    torch.testing.assert_close(found, wanted)


def test_nothing_is_differentiated_through_the_k_means():
    core = shaken(Decoder(WIDTHS, CHANNELS, "ema", 4, None, 0.0)).context.core
    assert not core(torch.randn(2, CHANNELS, 3, 4).double().requires_grad_()).requires_grad


def test_stored_bases_follow_those_of_the_batch():
    """In training: nine tenths of the stored ones, one tenth of the batch's mean."""
    decoder = shaken(Decoder(WIDTHS, CHANNELS, "ema", 4, None, 0.0))
    core = decoder.context.core.train()
    x = torch.randn(3, CHANNELS, 5, 6).double()
    before = core.bases.clone()
    found = []
    for sample in x.flatten(2):
        bases = before[0]
        for _ in range(3):
            shares = (sample.T @ bases).softmax(1)
            means = sample @ shares / (1e-6 + shares.sum(0))
            bases = means / means.norm(dim=0)
        found.append(bases)
    core(x)
    mean = torch.stack(found).mean(0, keepdim=True)
    torch.testing.assert_close(core.bases, 0.9 * before + 0.1 * mean)
    after = core.bases.clone()
    core.eval()(x)
    assert torch.equal(core.bases, after)
