"""SqueezeAttention and ScaleAttention against their papers' equations in plain PyTorch."""

from __future__ import annotations

import copy

import pytest
import torch
from harness import in_layout
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

import attnops
from attnops.nn import ScaleAttention, SqueezeAttention

ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "identity": lambda x: x}


def squeeze_equations(module, x):
    pool = max_pool2d if module.pool == "max" else avg_pool2d
    pooled = pool(x, module.pool_size, ceil_mode=True)
    attention = ACTIVATIONS[module.activation](module.attention(pooled))
    size, aligned = x.shape[2:], module.align_corners
    up = interpolate(attention, size, mode="bilinear", align_corners=aligned)
    out = up * module.main(x) + up
    return out if module.squeeze is None else out * module.squeeze(out)


def scale_equations(module, features, scores):
    size = features[0].shape[2:]

    def resize(x):
        return interpolate(x, size, mode="bilinear", align_corners=True)

    chosen = features if module.source == "concat" else features[:1]
    weights = module.head(torch.cat([resize(f) for f in chosen], 1)).softmax(1)
    return sum(weights[:, i : i + 1] * resize(s) for i, s in enumerate(scores))


def same_gradients(found, expected, inputs, module, twin):
    grad = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad(found, [*inputs, *module.parameters()], grad, allow_unused=True),
        torch.autograd.grad(expected, [*inputs, *twin.parameters()], grad, allow_unused=True),
        strict=True,
    ):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


OPTIONS = [
    {},
    {"pool": "average", "activation": "sigmoid", "pool_size": 2, "align_corners": True},
    {"out_kernel": 1, "squeeze_channels": 4, "reduction": 2, "activation": "identity"},
]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_squeeze_attention_is_the_papers(device, options, layout):
    module = SqueezeAttention(16, 5, **options).to(device, torch.float64)
    twin = copy.deepcopy(module)
    x = in_layout(torch.randn(2, 16, 19, 24, dtype=torch.float64, device=device), layout)
    x.requires_grad_()
    found, expected = module(x), squeeze_equations(twin, x)
    torch.testing.assert_close(found, expected)
    same_gradients(found, expected, [x], module, twin)


def test_squeeze_attention_has_the_papers_parameters():
    """Four heads of table 6 with their squeeze-and-excitation: 12.9 M."""
    with torch.device("meta"):
        heads = [SqueezeAttention(c, 21, squeeze_channels=4) for c in (256, 512, 1024, 2048)]
    assert sum(p.numel() for head in heads for p in head.parameters()) == 12_901_420


@pytest.mark.parametrize("source", ["concat", "first"])
def test_scale_attention_is_the_papers(device, source):
    module = ScaleAttention(6, 3, 8, dropout=0.0, source=source).to(device, torch.float64)
    twin = copy.deepcopy(module)
    sizes = ((11, 9), (8, 7), (6, 5))
    features = [torch.randn(2, 6, *s, dtype=torch.float64, device=device) for s in sizes]
    scores = [torch.randn(2, 4, *s, dtype=torch.float64, device=device) for s in sizes]
    inputs = [x.requires_grad_() for x in (*features, *scores)]
    found, expected = module(features, scores), scale_equations(twin, features, scores)
    torch.testing.assert_close(found, expected)
    same_gradients(found, expected, inputs, module, twin)


def test_scale_attention_keeps_its_weights_when_asked(device):
    module = ScaleAttention(6, 2, 8).to(device).eval()
    features = [torch.randn(1, 6, n, n, device=device) for n in (9, 5)]
    scores = [torch.randn(1, 4, n, n, device=device) for n in (9, 5)]
    module(features, scores)
    assert module.weights is None
    module.keep_weights = True
    merged = module(features, scores)
    assert module.weights.shape == (1, 2, 9, 9)
    torch.testing.assert_close(module.weights.sum(1), torch.ones(1, 9, 9, device=device))
    resized = interpolate(scores[1], (9, 9), mode="bilinear", align_corners=True)
    expected = module.weights[:, :1] * scores[0] + module.weights[:, 1:] * resized
    torch.testing.assert_close(merged, expected)


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_merging_without_weights(device, reduce):
    module = ScaleAttention(6, 2, reduce=reduce)
    assert not list(module.parameters())
    features = [torch.randn(1, 6, n, n, device=device) for n in (9, 5)]
    scores = [torch.randn(1, 4, n, n, device=device) for n in (9, 5)]
    resized = interpolate(scores[1], (9, 9), mode="bilinear", align_corners=True)
    both = torch.stack([scores[0], resized])
    expected = both.mean(0) if reduce == "mean" else both.amax(0)
    torch.testing.assert_close(module(features, scores), expected)


def test_scale_attention_has_the_specified_parameters():
    def count(*args, **named):
        with torch.device("meta"):
            return sum(p.numel() for p in ScaleAttention(*args, **named).parameters())

    assert count(1024, 3) == 14_157_827
    assert count(1024, 2) == 9_438_722
    assert count(1024, 3, source="first") == 4_720_643


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_backends_agree(device, layout):
    squeeze = SqueezeAttention(16, 5).to(device).eval()
    x = in_layout(torch.randn(2, 16, 19, 24, device=device), layout)
    scale = ScaleAttention(16, 2, 8).to(device).eval()
    maps = [x, x[:, :, ::2, ::2].contiguous()]
    found = squeeze(x), scale(maps, maps)
    with attnops.use_backend("reference"):
        for a, b in zip(found, (squeeze(x), scale(maps, maps)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.inductor
def test_compiles_whole(device):
    squeeze = SqueezeAttention(16, 5).to(device).eval()
    x = torch.randn(2, 16, 19, 24, device=device)
    compiled = torch.compile(squeeze, fullgraph=True)
    torch.testing.assert_close(compiled(x), squeeze(x), rtol=1e-4, atol=1e-4)
    scale = ScaleAttention(16, 2, 8).to(device).eval()
    maps = [x, x[:, :, ::2, ::2].contiguous()]
    compiled = torch.compile(scale, fullgraph=True)
    torch.testing.assert_close(compiled(maps, maps), scale(maps, maps), rtol=1e-4, atol=1e-4)


FEATURES = [torch.ones(1, 6, n, n) for n in (9, 5)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SqueezeAttention(18, 4), "reduction must divide in_channels"),
        (lambda: SqueezeAttention(16, 4, pool="min"), "pool must be 'max' or 'average'"),
        (lambda: SqueezeAttention(16, 4, activation="gelu"), "activation must be"),
        (lambda: SqueezeAttention(16, 4)(torch.ones(1, 8, 9, 9)), r"\[B, 16, H, W\]"),
        (lambda: ScaleAttention(6, 0), "num_scales must be at least 1"),
        (lambda: ScaleAttention(6, 2, source="last"), "source must be 'concat' or 'first'"),
        (lambda: ScaleAttention(6, 3)(FEATURES, FEATURES), "features must be 3 maps"),
        (lambda: ScaleAttention(5, 2)(FEATURES, FEATURES), r"features\[0\] must be \[B, 5, h, w\]"),
        (lambda: ScaleAttention(6, 2)(FEATURES, FEATURES[:1]), "scores must be 2 maps"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
