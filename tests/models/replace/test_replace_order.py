"""What was made before modules were replaced fits afterwards: optimizers, averages, checkpoints."""

from __future__ import annotations

import copy

import published_modules as published
import published_segmentor as segmentor
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import attnops
from attnops.nn import MSCA

KINDS = {
    "msca": (lambda: published.GatingUnit(6), [(2, 6, 9, 10)]),
    "block": (lambda: segmentor.SegNeXtBlock(6, 10), [(2, 90, 6), 9, 10]),
    "block, wrapped": (lambda: segmentor.SegNeXtBlock(6, 10, wrapped=True), [(2, 90, 6), 9, 10]),
    "msca, two strips": (lambda: published.GatingUnit(5, (3, 9)), [(1, 5, 8, 9)]),
    "msca, equal strips": (lambda: published.GatingUnit(4, (5, 5, 5)), [(1, 4, 8, 9)]),
    "hamburger": (lambda: published.PublishedHamburger(16, 5), [(2, 16, 9, 10)]),
    "apnb, official": (lambda: published.Block(10, 10, True, True), [(2, 10, 12, 11)]),
    "apnb, mmseg": (lambda: published.Block(10, 10, True, False), [(2, 10, 12, 11)]),
    "afnb, official": (
        lambda: published.Block(6, 10, False, True),
        [(2, 6, 16, 15), (2, 10, 9, 8)],
    ),
    "afnb, mmseg": (lambda: published.Block(6, 10, False, False), [(2, 6, 16, 15), (2, 10, 9, 8)]),
    "local attention": (lambda: published.LocalAttention(7), [(2, 7, 19, 24)]),
    "cgnl": (lambda: published.Relation(16, 8, 4), [(2, 16, 9, 7)]),
    "gald": (lambda: published.Gald(16, 8), [(2, 16, 33, 40)]),
}


class Network(nn.Module):
    """A known module between others, as it stands in a network."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.BatchNorm2d(3), inner, nn.Conv2d(3, 2, 1)

    def forward(self, *maps):
        torch.manual_seed(3)  # for the bases of a Hamburger
        return self.inner(*maps)


def made(kind: str, order: int) -> Network:
    """The network; `order` 1 has the parts of the known module registered the other way round."""
    torch.manual_seed(0)
    inner = published.shaken(KINDS[kind][0]())
    if order:
        for module in inner.modules():
            if not isinstance(module, (nn.Sequential, nn.ModuleList, published.ConvModule)):
                parts = list(module._modules.items())[::-1]
                module._modules.clear()
                module._modules.update(parts)
    return Network(inner)


def inputs(kind: str) -> list:
    return [x if isinstance(x, int) else torch.randn(x) for x in KINDS[kind][1]]


@pytest.fixture(params=[0, 1], ids=["published order", "other order"])
def order(request):
    return request.param


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def replaced(model: nn.Module) -> attnops.ReplacementReport:
    report = attnops.replace_modules(model, compare=False)
    assert [entry.path for entry in report.replaced] == ["inner"]
    return report


def test_parameters_and_buffers_keep_their_order(kind, order):
    model = made(kind, order)
    before = list(map(id, model.parameters())), list(map(id, model.buffers()))
    replaced(model)
    assert (list(map(id, model.parameters())), list(map(id, model.buffers()))) == before
    again = copy.deepcopy(model)
    pairs = list(zip(again.parameters(), model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    names = [name for name, _ in model.named_parameters()]
    assert sorted(names) == sorted(dict(model.state_dict()).keys() & set(names))
    assert dict(model.named_modules()).keys() == {
        name for name, _ in nn.Module.named_modules(model)
    } | {""}
    assert dict(model.inner.named_modules(prefix="x")).keys() == {
        f"x.{name}" if name else "x" for name, _ in model.inner.named_modules()
    }


def momentum_of(model: nn.Module, maps) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model(*maps).square().mean().backward()
    optimizer.step()
    return optimizer


def test_an_optimizers_state_from_before_is_loaded_after(kind, order):
    model, maps = made(kind, order), inputs(kind)
    before = momentum_of(model, maps)
    wanted = {id(p): before.state[p]["momentum_buffer"].clone() for p in model.parameters()}
    saved = copy.deepcopy(before.state_dict())
    replaced(model)
    after = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    after.load_state_dict(saved)
    for parameter in model.parameters():
        assert torch.equal(after.state[parameter]["momentum_buffer"], wanted[id(parameter)])
    model(*maps).square().mean().backward()
    after.step()


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_average_from_before_follows_the_model_after(kind, order, use_buffers):
    model, maps = made(kind, order), inputs(kind)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use_buffers)
    average.update_parameters(model)
    report = replaced(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    average.update_parameters(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2 / 3)  # 0.5·1 + 0.5·3 of the first values
    wanted = model.eval()(*maps)
    found = average.module.eval()(*maps)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    other = made(kind, order)
    other.load_state_dict(report.to_old_names(model.state_dict()))
    torch.testing.assert_close(other.eval()(*maps), wanted, rtol=1e-4, atol=1e-4)


def test_names_are_translated_both_ways(kind, order):
    before = made(kind, order)
    state = copy.deepcopy(before.state_dict())
    model = copy.deepcopy(before)
    report = replaced(model)
    new = report.to_new_names(state)
    assert new.keys() == model.state_dict().keys()
    other = made(kind, order)
    attnops.replace_modules(other, compare=False)
    other.load_state_dict(new)
    old = report.to_old_names(other.state_dict())
    assert old.keys() == state.keys()
    assert all(torch.equal(old[key], state[key]) for key in state)
    assert all(key.startswith("inner.") for key in (*report.keys, *report.keys.values()))


def test_parts_that_are_wrapped_later_keep_their_place():
    model = made("msca", 0)
    replaced(model)
    order = [name for name, _ in model.named_parameters()]
    model.inner.rows[1] = nn.Sequential(model.inner.rows[1])
    wrapped = [name.replace("rows.1.0.", "rows.1.") for name, _ in model.named_parameters()]
    assert wrapped == order
    assert order[2:] != [name for name, _ in Network(MSCA(6)).named_parameters()][2:]
