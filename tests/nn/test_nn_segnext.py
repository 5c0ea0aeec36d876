"""MSCA and the Hamburger against the published blocks written out in plain PyTorch."""

from __future__ import annotations

import copy

import pytest
import torch
from harness import in_layout
from torch import nn
from torch.nn.functional import normalize, relu

import attnops
from attnops.nn import MSCA, Hamburger

pytestmark = pytest.mark.usefixtures("without_onednn")


def published_msca(module, x):
    """Steps 3 to 7 of the published block, each branch from the same map."""
    local = module.local(x)
    branches = [c(r(local)) for r, c in zip(module.rows, module.columns, strict=True)]
    return module.mix(sum(branches, local)) * x


def published_hamburger(module, x, bases, steps):
    ham = relu(module.ham_in(x))
    batch, channels, height, width = ham.shape
    source = ham.view(batch, channels, height * width)
    coef = torch.softmax(source.transpose(1, 2).bmm(bases), dim=-1)

    def update_coef(bases, coef):
        numerator = source.transpose(1, 2).bmm(bases)
        return coef * numerator / (coef.bmm(bases.transpose(1, 2).bmm(bases)) + 1e-6)

    for _ in range(steps):
        coef = update_coef(bases, coef)
        numerator = source.bmm(coef)
        bases = bases * numerator / (bases.bmm(coef.transpose(1, 2).bmm(coef)) + 1e-6)
    out = bases.bmm(update_coef(bases, coef).transpose(1, 2)).view_as(ham)
    return relu(x + module.norm(module.ham_out(out)))


def same_gradients(found, expected, x, module, twin):
    grad = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad(found, [x, *module.parameters()], grad),
        torch.autograd.grad(expected, [x, *twin.parameters()], grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("options", [{}, {"local_kernel": 3, "strips": (9,)}], ids=str)
def test_msca_is_the_published_unit(device, options, layout):
    module = MSCA(6, **options).to(device, torch.float64)
    twin = copy.deepcopy(module)
    x = in_layout(torch.randn(2, 6, 17, 14, dtype=torch.float64, device=device), layout)
    x.requires_grad_()
    found, expected = module(x), published_msca(twin, x)
    torch.testing.assert_close(found, expected)
    same_gradients(found, expected, x, module, twin)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_hamburger_is_the_published_one(device, training, layout):
    module = Hamburger(8, rank=3, norm_groups=4).to(device, torch.float64).train(training)
    nn.init.normal_(module.norm.weight)
    twin = copy.deepcopy(module)
    x = in_layout(torch.randn(2, 8, 7, 9, dtype=torch.float64, device=device), layout)
    x.requires_grad_()
    bases = normalize(torch.rand(2, 8, 3, dtype=torch.float64, device=device), dim=1)
    module.bases = bases
    found = module(x)
    expected = published_hamburger(twin, x, bases, 6 if training else 7)
    torch.testing.assert_close(found, expected)
    same_gradients(found, expected, x, module, twin)


def test_bases_are_redrawn_as_published(device):
    """A seed before the forward reproduces its only draw."""
    module = Hamburger(8, rank=3, norm_groups=4).to(device).eval()
    x = torch.randn(2, 8, 7, 9, device=device)
    assert module.bases is None
    first, second = module(x), module(x)
    assert not torch.equal(first, second)
    torch.manual_seed(7)
    drawn = module(x)
    after = torch.rand(1)
    torch.manual_seed(7)
    bases = normalize(torch.rand(2, 8, 3), dim=1)
    assert torch.equal(torch.rand(1), after)
    module.bases = bases
    torch.testing.assert_close(drawn, module(x))


def test_seed_draws_the_bases_once(device):
    modules = [Hamburger(8, rank=3, seed=5, norm_groups=4).to(device) for _ in range(2)]
    modules[1].load_state_dict(modules[0].state_dict())
    x = torch.randn(2, 8, 7, 9, device=device)
    outputs = [module.eval()(x) for module in (*modules, modules[0])]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    alone = modules[0](x[1:])
    torch.testing.assert_close(alone, outputs[0][1:])


def test_assigned_bases_win_over_the_seed_and_can_be_taken_back(device):
    module = Hamburger(8, rank=3, seed=5, norm_groups=4).to(device).eval()
    seeded = module.bases
    x = torch.randn(2, 8, 7, 9, device=device)
    before = module(x)
    module.bases = torch.rand(1, 8, 3)
    assert not torch.equal(module(x), before)
    module.bases = None
    assert module.bases is seeded and torch.equal(module(x), before)
    assert not any("bases" in name for name in module.state_dict())


def test_bases_of_the_wrong_shape_are_refused():
    module = Hamburger(8, rank=3, norm_groups=4)
    with pytest.raises(ValueError, match=r"bases must be \[1 or B, 8, 3\], got \[1, 8, 4\]"):
        module.bases = torch.rand(1, 8, 4)
    module.bases = torch.rand(2, 8, 3)
    with pytest.raises(ValueError, match="bases are for 2 samples, the input has 3"):
        module(torch.randn(3, 8, 5, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_factorisation_runs_in_float32(device, dtype):
    """CᵀC of this map is far beyond the largest float16."""
    module = Hamburger(8, rank=2, seed=1, norm_groups=4).to(device).eval()
    x = 30 + torch.randn(1, 8, 40, 40, device=device)
    expected = module(x)
    with torch.autocast(device.type, dtype=dtype):
        out = module(x)
    assert out.isfinite().all()
    half = copy.deepcopy(module).to(dtype)(x.to(dtype))
    assert half.dtype == dtype and half.isfinite().all()
    for found in (out, half):
        relative = (found.float() - expected).norm() / expected.norm()
        assert relative < 20 * torch.finfo(dtype).eps


def test_one_step_gradient_trains_every_parameter(device):
    module = Hamburger(8, rank=3, grad="one_step", seed=0, norm_groups=4).to(device)
    x = torch.randn(2, 8, 7, 9, device=device)
    module(x).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("make", [lambda: MSCA(8), lambda: Hamburger(8, 3, seed=0, norm_groups=4)])
def test_backends_agree(device, make):
    module = make().to(device).eval()
    x = torch.randn(2, 8, 20, 23, device=device)
    out = module(x)
    with attnops.use_backend("reference"):
        torch.testing.assert_close(out, module(x), rtol=1e-4, atol=1e-4)


@pytest.mark.inductor
@pytest.mark.parametrize("make", [lambda: MSCA(8), lambda: Hamburger(8, 3, seed=0, norm_groups=4)])
def test_compiles_whole_with_dynamic_shapes(device, make):
    module = make().to(device)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for shape in ((2, 8, 12, 15), (3, 8, 20, 9)):
        x = torch.randn(shape, device=device)
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [lambda: MSCA(8), lambda: Hamburger(8, 3, seed=0, norm_groups=4)])
def test_exports(device, make):
    module = make().to(device).eval()
    x = torch.randn(2, 8, 12, 15, device=device)
    program = torch.export.export(module, (x,))
    torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MSCA(4, local_kernel=4), "odd and positive, got 4"),
        (lambda: MSCA(4, strips=(7, 0)), "odd and positive, got 0"),
        (lambda: MSCA(4)(torch.ones(1, 5, 6, 6)), r"\[B, 4, H, W\]"),
        (lambda: Hamburger(32, grad="none"), "grad must be 'unrolled' or 'one_step'"),
        (lambda: Hamburger(32, rank=0), "rank must be at least 1"),
        (lambda: Hamburger(48), "norm_groups must divide channels"),
        (lambda: Hamburger(32)(torch.ones(1, 31, 6, 6)), r"\[B, 32, H, W\]"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
