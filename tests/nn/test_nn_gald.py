"""GALD's modules against the published blocks written out in plain PyTorch (float64)."""

from __future__ import annotations

import copy

import pytest
import torch
from harness import check_modelled, in_layout
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, unfold

import attnops
from attnops.nn import (
    ASPP,
    CGNL,
    DynamicLocalDistribution,
    GALDBlock,
    LocalDistribution,
    PyramidPooling,
)


def resize(x, size):
    return interpolate(x, size, mode="bilinear", align_corners=True)


def published_distribution(module, x, residual=1.0):
    gate = torch.sigmoid(resize(module.gate(x), x.shape[2:]))  # sigmoid after the resize
    return residual * x + x * gate


def published_cgnl(module, x):
    """Group by group, as the released loop does it, before and after the norm."""
    t, p, g = (conv(x) for conv in (module.t, module.p, module.g))
    out = []
    for ti, pi, gi in zip(*(m.chunk(module.groups, dim=1) for m in (t, p, g)), strict=True):
        channels, height, width = ti.shape[1:]
        a = (pi * gi).flatten(1).sum(dim=1)
        if module.use_scale:
            a = a / (channels * height * width) ** 0.5
        out.append(a[:, None, None, None] * ti)
    return x + module.gn(module.z(torch.cat(out, dim=1)))


def published_gald(module, x):
    down = published_cgnl(module.aggregation, module.down(x))
    xg = resize(down, x.shape[2:])
    ld = published_distribution(module.distribution, xg)
    return ld + xg  # the residual twice: (2 + M)·Xg


def published_ldv2(module, xg, xl):
    x = torch.cat([xg, xl], dim=1)
    q, k, v = (conv(x) for conv in (module.query, module.key, module.value))
    size, r = module.kernel_size, module.dilation
    batch, channels, height, width = q.shape

    def windows(m):
        columns = unfold(m, size, dilation=r, padding=r * (size // 2))
        return columns.view(batch, channels, size * size, height, width)

    weights = torch.einsum("bchw,bcnhw->bnhw", q, windows(k)).softmax(1)
    return torch.einsum("bnhw,bcnhw->bchw", weights, windows(v)), weights


def published_psp(module, x):
    levels = [
        resize(level(adaptive_avg_pool2d(x, n)), x.shape[2:])
        for n, level in zip(module.sizes, module.levels, strict=True)
    ]
    return module.bottleneck(torch.cat([*levels, x], dim=1))


def published_aspp(module, x):
    image = module.image(adaptive_avg_pool2d(x, 1))
    maps = [resize(image, x.shape[2:]), *(branch(x) for branch in module.branches)]
    return module.bottleneck(torch.cat(maps, dim=1))


CASES = {
    "ldv1": (lambda: LocalDistribution(6), published_distribution, (6, 17, 22)),
    "cgnl": (lambda: CGNL(16, 8, groups=4), published_cgnl, (16, 4, 5)),
    "cgnl scaled": (lambda: CGNL(12, 18, 3, use_scale=True), published_cgnl, (12, 5, 7)),
    "gald": (lambda: GALDBlock(16, 8), published_gald, (16, 33, 38)),
    "psp": (lambda: PyramidPooling(10, 6), published_psp, (10, 7, 9)),
    "aspp": (lambda: ASPP(10, 4, 6, (2, 5)), published_aspp, (10, 7, 9)),
}


def randomise(module):
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2) if name.endswith("var") else buffer.normal_()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    for child in module.modules():
        if isinstance(child, nn.Dropout2d):
            child.p = 0.0
    return module


def gradients(out, x, module, grad):
    return torch.autograd.grad(out, [x, *module.parameters()], grad, allow_unused=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("case", CASES)
def test_is_the_published_block(device, case, training, layout):
    make, published, shape = CASES[case]
    module = randomise(make()).to(device, torch.float64).train(training)
    twin = copy.deepcopy(module)
    x = torch.randn(3, *shape, dtype=torch.float64, device=device)
    x = in_layout(x, layout).requires_grad_()
    out, expected = module(x), published(twin, x)
    torch.testing.assert_close(out, expected, rtol=1e-8, atol=1e-8)
    grad = torch.randn_like(out)
    for a, b in zip(
        gradients(out, x, module, grad), gradients(expected, x, twin, grad), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    for (name, a), (_, b) in zip(module.named_buffers(), twin.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_dynamic_local_distribution_is_the_papers(device, layout):
    module = DynamicLocalDistribution(6, 3, 2).to(device, torch.float64)
    xg, xl = (
        in_layout(x, layout) for x in torch.randn(2, 2, 6, 9, 11, device=device).double().unbind()
    )
    expected, weights = published_ldv2(module, xg, xl)
    torch.testing.assert_close(module(xg, xl), expected)
    torch.testing.assert_close(module.attention(xg, xl), weights)
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))


def test_masked_affinities_outside_the_map_are_zero(device):
    module = DynamicLocalDistribution(4, 3, 2, border="mask").to(device)
    maps = torch.randn(2, 1, 4, 5, 6, device=device)
    weights = module.attention(*maps)
    assert weights.shape == (1, 9, 5, 6)
    assert (weights[:, :3, :2] == 0).all() and (weights[:, 4] > 0).all()


def test_paper_form_of_the_block_adds_the_input_once(device):
    block = randomise(GALDBlock(8, 8)).to(device, torch.float64).eval()
    x = torch.randn(1, 8, 31, 33, dtype=torch.float64, device=device)
    released = block(x)
    block.distribution.residual_weight = 1.0
    xg = resize(block.aggregation(block.down(x)), x.shape[2:])
    torch.testing.assert_close(released - block(x), xg)


def test_parameter_counts_of_the_specification():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        assert count(GALDBlock(512, 256)) == 435_200
        assert count(CGNL(512, 256)) == 410_624
        assert count(LocalDistribution(512)) == 18_432
        assert count(DynamicLocalDistribution()) == 1_572_864
        assert count(ASPP(2048)) == 15_863_296
        assert count(PyramidPooling(2048)) == 23_073_792


def test_global_sums_do_not_overflow_in_half_precision(device):
    """Nor lose more than half precision does: PyTorch's own sums are infinite here."""
    module = CGNL(16, 8, groups=2).to(device).half()
    x = (40 * torch.randn(1, 16, 48, 48, device=device)).half()
    wide, wide_x = copy.deepcopy(module).double(), x.double()
    assert not published_cgnl(module, x).isfinite().all()
    found = module(x)
    assert found.dtype == torch.float16
    check_modelled(found, lambda: published_cgnl(wide, wide_x))
    with torch.autocast(device.type, dtype=torch.float16):
        found = module.float()(x.float())
    check_modelled(found.half(), lambda: published_cgnl(wide, wide_x))


@pytest.mark.parametrize("case", [*CASES, "ldv2"])
def test_backends_agree(device, case):
    if case == "ldv2":
        module, inputs = DynamicLocalDistribution(8, 5, 3), torch.randn(2, 1, 8, 20, 23)
    else:
        make, _, shape = CASES[case]
        module, inputs = make(), torch.randn(1, 1, *shape)
    module, inputs = module.to(device).eval(), inputs.to(device).unbind()
    out = module(*inputs)
    with attnops.use_backend("reference"):
        torch.testing.assert_close(out, module(*inputs), rtol=1e-4, atol=1e-4)


# Inductor takes half a minute for each: GALD is made of ldv1 and CGNL, ASPP resizes as PSP does.
SLOW_TO_COMPILE = ("cgnl scaled", "gald", "psp")


@pytest.mark.inductor
@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW_TO_COMPILE else c for c in CASES]
)
def test_compiles_whole_with_dynamic_shapes(device, case):
    make, _, shape = CASES[case]
    module = randomise(make()).to(device).eval()
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for extra in (0, 3):
        x = torch.randn(2, shape[0], shape[1] + extra, shape[2] + 2 * extra, device=device)
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_exports(device, case):
    make, _, shape = CASES[case]
    module = make().to(device).eval()
    x = torch.randn(2, *shape, device=device)
    program = torch.export.export(module, (x,))
    torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LocalDistribution(4)(torch.ones(1, 4, 14, 20)), ValueError, "15x15.*got 14x20"),
        (lambda: LocalDistribution(4)(torch.ones(1, 5, 20, 20)), ValueError, r"\[B, 4, H, W\]"),
        (lambda: CGNL(12, 8, groups=8), ValueError, "groups must divide channels and planes"),
        (lambda: CGNL(8, 8)(torch.ones(8, 4, 4)), ValueError, r"x must be \[B, 8, H, W\]"),
        (lambda: GALDBlock(8, 8)(torch.ones(1, 8, 20, 14)), ValueError, "got 20x14"),
        (lambda: DynamicLocalDistribution(4, 2), ValueError, "odd and positive"),
        (lambda: DynamicLocalDistribution(4, border="x"), ValueError, "border must be"),
        (
            lambda: DynamicLocalDistribution(4)(torch.ones(1, 4, 5, 5), torch.ones(1, 4, 5, 6)),
            ValueError,
            r"local_features must be \[1, 4, 5, 5\]",
        ),
        (lambda: PyramidPooling(4, 2, (0,)), ValueError, "sizes must be at least 1"),
        (lambda: ASPP(4)(torch.ones(1, 3, 5, 5)), ValueError, r"x must be \[B, 4, H, W\]"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
