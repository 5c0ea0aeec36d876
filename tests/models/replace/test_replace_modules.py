"""Swapping heads: stand-ins with the published names and functions, near misses, sharing."""

from __future__ import annotations

import copy

import published_modules as published
import pytest
import torch
from torch import Tensor, nn

import attnops
from attnops.nn import AFNB, APNB, CGNL, MSCA, GALDBlock, Hamburger, LocalDistribution

KNOWN = {
    "msca": (lambda: published.GatingUnit(6), MSCA, [(2, 6, 23, 30)]),
    "msca, other strips": (lambda: published.GatingUnit(5, (3, 9)), MSCA, [(1, 5, 8, 9)]),
    "hamburger": (lambda: published.PublishedHamburger(16, 5), Hamburger, [(2, 16, 9, 10)]),
    "apnb, official": (lambda: published.Block(10, 10, True, True), APNB, [(2, 10, 21, 17)]),
    "apnb, mmseg": (lambda: published.Block(10, 10, True, False), APNB, [(2, 10, 21, 17)]),
    "afnb, official": (
        lambda: published.Block(6, 10, False, True),
        AFNB,
        [(2, 6, 30, 31), (2, 10, 15, 16)],
    ),
    "afnb, mmseg": (
        lambda: published.Block(6, 10, False, False),
        AFNB,
        [(2, 6, 30, 31), (2, 10, 15, 16)],
    ),
    "local attention": (lambda: published.LocalAttention(7), LocalDistribution, [(2, 7, 19, 24)]),
    "cgnl": (lambda: published.Relation(16, 8, 4), CGNL, [(2, 16, 9, 7)]),
    "cgnl, scaled": (lambda: published.Relation(16, 8, 1, True), CGNL, [(2, 16, 9, 7)]),
    "gald": (lambda: published.Gald(16, 8), GALDBlock, [(2, 16, 33, 40)]),
    "gald, equation": (lambda: published.Gald(16, 8, False), GALDBlock, [(2, 16, 33, 40)]),
}


class Holder(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> Tensor:
        torch.manual_seed(3)  # for the bases of a Hamburger
        return self.inner(*inputs)


@pytest.mark.parametrize("name", KNOWN)
def test_known_modules_are_replaced_and_compute_the_same(name):
    make, cls, shapes = KNOWN[name]
    model = Holder(published.shaken(make())).double().eval()
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    before = copy.deepcopy(model)
    parameters = {id(p) for p in model.parameters()}
    report = attnops.replace_modules(model)
    (entry,) = report.replaced
    assert (entry.path, entry.was) == ("inner", type(before.inner).__name__)
    assert entry.now == cls.__name__ and type(model.inner) is cls
    assert report.left == [] and "not compared" not in entry.note
    assert {id(p) for p in model.parameters()} == parameters
    assert not any(m.training for m in model.modules())
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs), before(*inputs))
    # Gradients of every parameter, too. The Hamburger's steps differ between the modes.
    wanted = torch.autograd.grad(before(*inputs).square().sum(), list(before.parameters()))
    model(*inputs).square().sum().backward()
    by_size = sorted(p.grad.norm().item() for p in model.parameters())
    for found, expected in zip(by_size, sorted(g.norm().item() for g in wanted), strict=True):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_an_optimizer_made_before_still_trains():
    model = Holder(published.GatingUnit(4)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attnops.replace_modules(model)
    assert model.inner.training
    start = model.inner.local.weight.detach().clone()
    model(torch.randn(1, 4, 9, 9)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model.inner.local.weight, start)


def test_every_place_is_found_and_shared_modules_stay_shared():
    gate = published.GatingUnit(4)
    model = nn.Sequential(
        nn.ModuleDict({"a": gate, "b": Holder(gate)}), nn.ReLU(), published.GatingUnit(3)
    )
    report = attnops.replace_modules(model)
    assert [entry.path for entry in report.replaced] == ["0.a", "2"]
    assert model[0]["a"] is model[0]["b"].inner
    assert isinstance(model[0]["a"], MSCA)
    assert "attnops.nn.MSCA" in str(report)
    assert attnops.replace_modules(model).replaced == []  # a second time there is nothing to do


def test_a_module_that_stands_twice_in_one_parent_is_replaced_twice():
    gate = published.GatingUnit(4)
    model = nn.Sequential(gate, nn.ReLU(), gate)
    assert len(attnops.replace_modules(model).replaced) == 1
    assert isinstance(model[0], MSCA) and model[2] is model[0]


def test_a_context_of_zeros_is_named():
    model = Holder(published.Block(8, 8, True, False))
    nn.init.zeros_(model.inner.stages[0].out_project.weight)
    (entry,) = attnops.replace_modules(model).replaced
    assert "its context is zero" in entry.note


def test_frozen_batch_norms_stay_frozen():
    model = Holder(published.Block(8, 8, True, False)).train()
    model.inner.bottleneck.bn.eval()
    attnops.replace_modules(model)
    assert model.inner.training and model.inner.fusion.training
    assert not model.inner.fusion.bn.training


def test_other_models_are_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sequential(nn.ReLU()))
    before = list(model.modules())
    report = attnops.replace_modules(model)
    assert report == attnops.ReplacementReport()
    assert list(model.modules()) == before


def changed(module: nn.Module, change) -> nn.Module:
    change(module)
    return module


def with_attribute(name: str, value: object):
    return lambda module: setattr(module, name, value)


class Doubling(published.GatingUnit):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: changed(
                published.GatingUnit(4), with_attribute("conv0", nn.Conv2d(4, 4, 5, padding=2))
            ),
            "conv0 has groups=1",
        ),
        (
            lambda: changed(
                published.GatingUnit(4),
                with_attribute("conv0", nn.Conv2d(4, 4, 5, padding=4, dilation=2, groups=4)),
            ),
            "dilation",
        ),
        (lambda: normed(), "parametrizations"),
        (lambda: Doubling(4), "computes something else"),
        (lambda: hooked(), "hooks"),
        (lambda: published.PublishedHamburger(16, 4, inv_t=100), "inv_t=100"),
        (lambda: published.PublishedHamburger(16, 4, rand_init=False), "run it once"),
        (lambda: published.Block(8, 8, True, True, count=2), "2 attention cores"),
        (lambda: published.Block(8, 8, True, False, relu=False), "no ReLU"),
        (lambda: biased(), "no bias"),
    ],
)
def test_near_misses_are_left_alone_and_named(make, reason):
    model = Holder(make())
    inner = model.inner
    report = attnops.replace_modules(model)
    assert model.inner is inner and report.replaced == []
    (entry,) = report.left
    assert entry.path == "inner" and reason in entry.note
    assert "left alone" in str(report)


class Off(published.GatingUnit):
    """Its result is off by a small factor, or in one place alone."""

    def __init__(self, share: float, everywhere: bool) -> None:
        super().__init__(4)
        self.share, self.everywhere = share, everywhere

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.everywhere:
            return y * (1 + self.share)
        off = torch.zeros_like(y)
        off.view(-1)[7] = self.share * y.norm()
        return y + off


@pytest.mark.parametrize("everywhere", [True, False], ids=["everywhere", "in one place"])
@pytest.mark.parametrize(
    ("dtype", "share", "is_same"),
    [
        (torch.float32, 0.3, False),
        (torch.float32, 0.01, False),
        (torch.float32, 1e-3, False),
        (torch.float32, 1e-6, True),
        (torch.float64, 1e-6, False),
        (torch.float64, 1e-8, False),
        (torch.float64, 1e-12, True),
        (torch.bfloat16, 0.3, False),
        (torch.bfloat16, 0.1, False),
        (torch.bfloat16, 2**-9, True),
    ],
    ids=str,
)
def test_only_rounding_may_differ(dtype, share, is_same, everywhere):
    model = Holder(published.shaken(Off(share, everywhere))).to(dtype)
    report = attnops.replace_modules(model)
    assert isinstance(model.inner, MSCA) == is_same
    assert len(report.replaced) == is_same
    if not is_same:
        assert "computes something else" in report.left[0].note


def normed() -> nn.Module:
    unit = published.GatingUnit(4)
    nn.utils.parametrizations.weight_norm(unit.conv0)
    return unit


def hooked() -> nn.Module:
    unit = published.GatingUnit(4)
    unit.register_forward_hook(lambda *args: None)
    return unit


def biased() -> nn.Module:
    relation = published.Relation(16, 8, 4)
    relation.p = nn.Conv2d(16, 8, 1)
    return relation


def test_fixed_bases_are_kept():
    model = Holder(published.PublishedHamburger(16, 4, rand_init=False)).eval()
    x = torch.randn(2, 16, 6, 7)
    with torch.no_grad():
        wanted = model(x)
        attnops.replace_modules(model)
        assert isinstance(model.inner, Hamburger)
        torch.testing.assert_close(model.inner(x), wanted, rtol=1e-4, atol=1e-5)


def test_without_comparison_nothing_runs():
    class Silent(published.GatingUnit):
        def forward(self, x):
            raise AssertionError("it ran")

    model = Holder(Silent(4))
    assert attnops.replace_modules(model, compare=False).replaced[0].note == ""
    model = Holder(Silent(4))
    assert "raises AssertionError" in attnops.replace_modules(model).replaced[0].note
    with torch.device("meta"):
        model = Holder(published.GatingUnit(4))
    assert "meta device" in attnops.replace_modules(model).replaced[0].note


def test_the_random_state_is_left_alone(monkeypatch):
    seeded = []
    torch.manual_seed(0)
    wanted = torch.rand(3)
    model = Holder(published.PublishedHamburger(16, 4))
    torch.manual_seed(0)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    attnops.replace_modules(model)
    assert torch.equal(torch.rand(3), wanted)
    assert type(model.inner) is Hamburger and seeded == []


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got dict"):
        attnops.replace_modules({})


@pytest.mark.parametrize("name", ["apnb, official", "gald", "hamburger"])
def test_the_comparison_switches_no_mode(name, monkeypatch):
    """Nobody who trains the model meanwhile sees it in evaluation."""
    make, cls, _ = KNOWN[name]
    model = Holder(published.shaken(make()))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    seen, switched = [], []
    for norm in norms:
        norm.register_forward_hook(
            lambda module, inputs, output: seen.append((module.training, norms[0].training))
        )
    monkeypatch.setattr(nn.Module, "train", lambda self, mode=True: switched.append(mode) or self)
    report = attnops.replace_modules(model)
    assert len(report.replaced) == 1 and type(model.inner) is cls
    assert not switched and all(norm.training for norm in norms)
    assert set(seen) == ({(False, True)} if norms else set())
    assert all(not norm.num_batches_tracked for norm in norms)
