"""Swapping heads: stand-ins with the published names and functions, near misses, sharing."""

from __future__ import annotations

import copy
import sys
import types

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

import attnops
from attnops.nn import AFNB, APNB, CGNL, MSCA, GALDBlock, Hamburger, LocalDistribution


def depthwise(channels: int, height: int, width: int) -> nn.Conv2d:
    padding = (height // 2, width // 2)
    return nn.Conv2d(channels, channels, (height, width), padding=padding, groups=channels)


class GatingUnit(nn.Module):
    def __init__(self, channels: int, lengths=(7, 11, 21)):
        super().__init__()
        self.conv0 = depthwise(channels, 5, 5)
        for i, length in enumerate(lengths):
            setattr(self, f"conv{i}_1", depthwise(channels, 1, length))
            setattr(self, f"conv{i}_2", depthwise(channels, length, 1))
        self.count = len(lengths)
        setattr(self, f"conv{self.count}", nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv0(x)
        total = a
        for i in range(self.count):
            total = total + getattr(self, f"conv{i}_2")(getattr(self, f"conv{i}_1")(a))
        return getattr(self, f"conv{self.count}")(total) * x


class ConvModule(nn.Module):
    """As mmcv names the parts."""

    def __init__(self, channels: int, out: int, bias=True, bn=False, gn=False, act=False, k=1):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, k, padding=k // 2, bias=bias)
        if bn:
            self.bn = nn.BatchNorm2d(out)
        if gn:
            self.gn = nn.GroupNorm(4, out)
        if act:
            self.activate = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x


class Decomposition(nn.Module):
    def __init__(self, rank: int, rand_init: bool = True, inv_t: float = 1):
        super().__init__()
        self.S, self.R, self.train_steps, self.eval_steps = 1, rank, 6, 7
        self.inv_t, self.rand_init = inv_t, rand_init

    def forward(self, x: Tensor) -> Tensor:
        source = x.flatten(2)
        bases = getattr(self, "bases", None)
        if bases is None:
            drawn = (source.shape[0] if self.rand_init else 1, source.shape[1], self.R)
            bases = normalize(torch.rand(drawn), dim=1)
            if not self.rand_init:
                self.register_buffer("bases", bases)
        bases = bases.to(source).expand(source.shape[0], -1, -1)
        steps = self.train_steps if self.training else self.eval_steps
        bases, coef = attnops.reference.nmf(source, bases, steps, self.inv_t)
        return (bases @ coef.mT).view_as(x)


class PublishedHamburger(nn.Module):
    def __init__(self, channels: int, rank: int, **options):
        super().__init__()
        self.ham_in = ConvModule(channels, channels)
        self.ham = Decomposition(rank, **options)
        self.ham_out = ConvModule(channels, channels, bias=False, gn=True)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.ham_out(self.ham(self.ham_in(x).relu()))).relu()


class Core(nn.Module):
    """The attention core of ANN, with the names of either code."""

    def __init__(self, low, high, key, value, out, shared, official, sizes=(1, 3, 6, 8)):
        super().__init__()
        self.official = official

        def projection(channels):
            if not official:
                return ConvModule(channels, key, bias=False, bn=True, act=True)
            norm = nn.Sequential(nn.BatchNorm2d(key), nn.ReLU())
            return nn.Sequential(nn.Conv2d(channels, key, 1), norm)

        names = (
            ("f_key", "f_query", "f_value", "W")
            if official
            else ("key_project", "query_project", "value_project", "out_project")
        )
        setattr(self, names[0], projection(low))
        setattr(self, names[1], getattr(self, names[0]) if shared else projection(high))
        setattr(self, names[2], nn.Conv2d(low, value, 1))
        setattr(self, names[3], nn.Conv2d(value, out, 1))
        self.names = names
        self.pools = nn.ModuleList(nn.AdaptiveAvgPool2d(n) for n in sizes)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        key, query, value, out = (getattr(self, name) for name in self.names)

        def sample(x):
            return torch.cat([pool(x).flatten(2) for pool in self.pools], dim=2)

        keys, queries = sample(key(low)), query(high)
        scores = queries.flatten(2).mT @ keys * keys.shape[1] ** -0.5
        context = sample(value(low)) @ scores.softmax(dim=2).mT
        return out(context.unflatten(2, high.shape[2:]))


class Block(nn.Module):
    """APNB (one argument) or AFNB (two)."""

    def __init__(self, low, high, shared, official, relu=None, count=1):
        super().__init__()
        out = high
        relu = shared if relu is None else relu
        self.stages = nn.ModuleList(
            Core(low, high, 6, 7, out, shared, official) for _ in range(count)
        )
        if official:
            norm = nn.BatchNorm2d(out)
            norm = nn.Sequential(norm, nn.ReLU()) if relu else norm
            self.conv_bn_dropout = nn.Sequential(
                nn.Conv2d(2 * out, out, 1), norm, nn.Dropout2d(0.05)
            )
        else:
            self.bottleneck = ConvModule(2 * out, out, bias=False, bn=True, act=relu)

    def forward(self, low: Tensor, high: Tensor | None = None) -> Tensor:
        high = low if high is None else high
        context = sum(stage(low, high) for stage in self.stages)
        fuse = getattr(self, "bottleneck", None) or self.conv_bn_dropout
        return fuse(torch.cat([context, high], dim=1))


def strided(channels: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 3, 2, groups=channels)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=False))


class LocalAttention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.dconv1, self.dconv2, self.dconv3 = (strided(channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        small = self.dconv3(self.dconv2(self.dconv1(x)))
        mask = interpolate(small, x.shape[2:], mode="bilinear", align_corners=True).sigmoid()
        return x + x * mask


class Relation(nn.Module):
    def __init__(self, channels: int, planes: int, groups: int, use_scale: bool = False):
        super().__init__()
        self.groups, self.use_scale = groups, use_scale
        self.t, self.p, self.g = (nn.Conv2d(channels, planes, 1, bias=False) for _ in range(3))
        self.z = nn.Conv2d(planes, channels, 1, groups=groups, bias=False)
        self.gn = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for t, p, g in zip(
            *(conv(x).chunk(self.groups, 1) for conv in (self.t, self.p, self.g)), strict=True
        ):
            a = (p * g).sum((1, 2, 3), keepdim=True)
            parts.append(t * (a * p[0].numel() ** -0.5 if self.use_scale else a))
        return x + self.gn(self.z(torch.cat(parts, 1)))


class Gald(nn.Module):
    def __init__(self, channels: int, planes: int, released: bool = True):
        super().__init__()
        self.down = strided(channels)
        self.long_relation = Relation(channels, planes, 8)
        self.local_attention = LocalAttention(channels)
        self.released = released

    def forward(self, x: Tensor) -> Tensor:
        small = self.long_relation(self.down(x))
        large = interpolate(small, x.shape[2:], mode="bilinear", align_corners=True)
        local = self.local_attention(large)
        return local + large if self.released else local


def shaken(module: nn.Module) -> nn.Module:
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_mean, -0.2, 0.2)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
            nn.init.uniform_(m.weight, 0.5, 1.5)
    return module


KNOWN = {
    "msca": (lambda: GatingUnit(6), MSCA, [(2, 6, 23, 30)]),
    "msca, other strips": (lambda: GatingUnit(5, (3, 9)), MSCA, [(1, 5, 8, 9)]),
    "hamburger": (lambda: PublishedHamburger(16, 5), Hamburger, [(2, 16, 9, 10)]),
    "apnb, official": (lambda: Block(10, 10, True, True), APNB, [(2, 10, 21, 17)]),
    "apnb, mmseg": (lambda: Block(10, 10, True, False), APNB, [(2, 10, 21, 17)]),
    "afnb, official": (lambda: Block(6, 10, False, True), AFNB, [(2, 6, 30, 31), (2, 10, 15, 16)]),
    "afnb, mmseg": (lambda: Block(6, 10, False, False), AFNB, [(2, 6, 30, 31), (2, 10, 15, 16)]),
    "local attention": (lambda: LocalAttention(7), LocalDistribution, [(2, 7, 19, 24)]),
    "cgnl": (lambda: Relation(16, 8, 4), CGNL, [(2, 16, 9, 7)]),
    "cgnl, scaled": (lambda: Relation(16, 8, 1, True), CGNL, [(2, 16, 9, 7)]),
    "gald": (lambda: Gald(16, 8), GALDBlock, [(2, 16, 33, 40)]),
    "gald, equation": (lambda: Gald(16, 8, False), GALDBlock, [(2, 16, 33, 40)]),
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
    model = Holder(shaken(make())).double().eval()
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
    model = Holder(GatingUnit(4)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attnops.replace_modules(model)
    assert model.inner.training
    start = model.inner.local.weight.detach().clone()
    model(torch.randn(1, 4, 9, 9)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model.inner.local.weight, start)


def test_every_place_is_found_and_shared_modules_stay_shared():
    gate = GatingUnit(4)
    model = nn.Sequential(nn.ModuleDict({"a": gate, "b": Holder(gate)}), nn.ReLU(), GatingUnit(3))
    report = attnops.replace_modules(model)
    assert [entry.path for entry in report.replaced] == ["0.a", "2"]
    assert model[0]["a"] is model[0]["b"].inner
    assert isinstance(model[0]["a"], MSCA)
    assert "attnops.nn.MSCA" in str(report)
    assert attnops.replace_modules(model).replaced == []  # a second time there is nothing to do


def test_a_module_that_stands_twice_in_one_parent_is_replaced_twice():
    gate = GatingUnit(4)
    model = nn.Sequential(gate, nn.ReLU(), gate)
    assert len(attnops.replace_modules(model).replaced) == 1
    assert isinstance(model[0], MSCA) and model[2] is model[0]


def test_a_context_of_zeros_is_named():
    model = Holder(Block(8, 8, True, False))
    nn.init.zeros_(model.inner.stages[0].out_project.weight)
    (entry,) = attnops.replace_modules(model).replaced
    assert "its context is zero" in entry.note


def test_frozen_batch_norms_stay_frozen():
    model = Holder(Block(8, 8, True, False)).train()
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


class Doubling(GatingUnit):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: changed(GatingUnit(4), with_attribute("conv0", nn.Conv2d(4, 4, 5, padding=2))),
            "conv0 has groups=1",
        ),
        (
            lambda: changed(
                GatingUnit(4),
                with_attribute("conv0", nn.Conv2d(4, 4, 5, padding=4, dilation=2, groups=4)),
            ),
            "dilation",
        ),
        (lambda: normed(), "parametrizations"),
        (lambda: Doubling(4), "computes something else"),
        (lambda: hooked(), "hooks"),
        (lambda: PublishedHamburger(16, 4, inv_t=100), "inv_t=100"),
        (lambda: PublishedHamburger(16, 4, rand_init=False), "run it once"),
        (lambda: Block(8, 8, True, True, count=2), "2 attention cores"),
        (lambda: Block(8, 8, True, False, relu=False), "no ReLU"),
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


def normed() -> nn.Module:
    unit = GatingUnit(4)
    nn.utils.parametrizations.weight_norm(unit.conv0)
    return unit


def hooked() -> nn.Module:
    unit = GatingUnit(4)
    unit.register_forward_hook(lambda *args: None)
    return unit


def biased() -> nn.Module:
    relation = Relation(16, 8, 4)
    relation.p = nn.Conv2d(16, 8, 1)
    return relation


def test_fixed_bases_are_kept():
    model = Holder(PublishedHamburger(16, 4, rand_init=False)).eval()
    x = torch.randn(2, 16, 6, 7)
    with torch.no_grad():
        wanted = model(x)
        attnops.replace_modules(model)
        assert isinstance(model.inner, Hamburger)
        torch.testing.assert_close(model.inner(x), wanted, rtol=1e-4, atol=1e-5)


def test_without_comparison_nothing_runs():
    class Silent(GatingUnit):
        def forward(self, x):
            raise AssertionError("it ran")

    model = Holder(Silent(4))
    assert attnops.replace_modules(model, compare=False).replaced[0].note == ""
    model = Holder(Silent(4))
    assert "raises AssertionError" in attnops.replace_modules(model).replaced[0].note
    with torch.device("meta"):
        model = Holder(GatingUnit(4))
    assert "meta device" in attnops.replace_modules(model).replaced[0].note


def test_the_random_state_is_left_alone(monkeypatch):
    seeded = []
    torch.manual_seed(0)
    wanted = torch.rand(3)
    model = Holder(PublishedHamburger(16, 4))
    torch.manual_seed(0)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    attnops.replace_modules(model)
    assert torch.equal(torch.rand(3), wanted)
    assert type(model.inner) is Hamburger and seeded == []


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got dict"):
        attnops.replace_modules({})


@pytest.fixture
def mmseg(monkeypatch):
    """mmsegmentation's modules; its compiled operators are not needed for these."""
    pytest.importorskip("mmcv")
    monkeypatch.setitem(sys.modules, "mmcv.ops", _Anything("mmcv.ops"))
    return pytest.importorskip("mmseg.models")


class _Anything(types.ModuleType):
    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def test_mmsegmentations_segnext(mmseg):
    from mmseg.models.backbones import MSCAN
    from mmseg.models.decode_heads import LightHamHead

    backbone = MSCAN(
        embed_dims=[8, 16, 24, 32], depths=[1, 1, 1, 1], norm_cfg={"type": "BN"}, drop_path_rate=0.0
    ).eval()
    head = LightHamHead(
        ham_channels=32,
        ham_kwargs={"MD_R": 4},
        in_channels=[16, 24, 32],
        in_index=[1, 2, 3],
        channels=32,
        num_classes=5,
        norm_cfg={"type": "GN", "num_groups": 8},
    ).eval()
    images = torch.randn(1, 3, 64, 96)

    def logits():
        torch.manual_seed(1)
        with torch.no_grad():
            return head(backbone(images))

    wanted = logits()
    assert len(attnops.replace_modules(backbone).replaced) == 4
    assert [entry.now for entry in attnops.replace_modules(head).replaced] == ["Hamburger"]
    torch.testing.assert_close(logits(), wanted, rtol=1e-4, atol=1e-4)


def test_mmsegmentations_ann(mmseg):
    from mmseg.models.decode_heads import ANNHead

    head = ANNHead(
        in_channels=[16, 24],
        in_index=[0, 1],
        channels=12,
        project_channels=8,
        num_classes=5,
        norm_cfg={"type": "BN"},
    ).eval()
    for module in head.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1)
    maps = [torch.randn(1, 16, 20, 24), torch.randn(1, 24, 20, 24)]
    with torch.no_grad():
        wanted = head(maps)
        report = attnops.replace_modules(head)
        assert sorted(entry.now for entry in report.replaced) == ["AFNB", "APNB"]
        torch.testing.assert_close(head(maps), wanted, rtol=1e-4, atol=1e-4)
