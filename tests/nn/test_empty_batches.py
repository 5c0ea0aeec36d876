"""Batches without a sample: outputs without elements, gradients of zeros."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attnops import nn as blocks

# module, shapes of its inputs, shape of the output
MODULES = {
    "NonLocal": (lambda: blocks.NonLocal(12, 8), [(12, 9, 9)], (12, 9, 9)),
    "APNB": (lambda: blocks.APNB(12, 8, 8), [(12, 9, 9)], (12, 9, 9)),
    "APNB linear": (lambda: blocks.APNB(12, 8, 8, projection="linear"), [(12, 9, 9)], (12, 9, 9)),
    "AFNB": (lambda: blocks.AFNB(6, 12, 8, 8), [(6, 18, 18), (12, 9, 9)], (12, 9, 9)),
    "LocalDistribution": (lambda: blocks.LocalDistribution(6), [(6, 17, 22)], (6, 17, 22)),
    "CGNL": (lambda: blocks.CGNL(16, 8), [(16, 4, 5)], (16, 4, 5)),
    "GALDBlock": (lambda: blocks.GALDBlock(16, 8), [(16, 33, 38)], (16, 33, 38)),
    "DynamicLocalDistribution": (
        lambda: blocks.DynamicLocalDistribution(6, 3, 2),
        [(6, 9, 11)] * 2,
        (6, 9, 11),
    ),
    "PyramidPooling": (lambda: blocks.PyramidPooling(10, 6), [(10, 7, 9)], (6, 7, 9)),
    "ASPP": (lambda: blocks.ASPP(10, 4, 6, (2, 5)), [(10, 7, 9)], (6, 7, 9)),
    "MSCA": (lambda: blocks.MSCA(6), [(6, 8, 9)], (6, 8, 9)),
    "Hamburger": (lambda: blocks.Hamburger(32, 5), [(32, 6, 7)], (32, 6, 7)),
    "SqueezeAttention": (lambda: blocks.SqueezeAttention(8, 6), [(8, 16, 17)], (6, 16, 17)),
}


def check(module: nn.Module, inputs: list, shape: tuple[int, ...]) -> None:
    leaves = [x for x in inputs if isinstance(x, torch.Tensor)]
    out = module.eval()(*inputs)
    assert out.shape == shape
    out.sum().backward()
    for leaf in leaves:
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name


@pytest.mark.parametrize("name", MODULES)
def test_no_samples(name):
    make, shapes, shape = MODULES[name]
    inputs = [torch.randn(0, *s, requires_grad=True) for s in shapes]
    check(make(), inputs, (0, *shape))


def test_no_samples_of_any_scale():
    features = [torch.randn(0, 6, 8, 9) for _ in range(2)]
    scores = [torch.randn(0, 5, n, n + 1) for n in (8, 4)]
    check(blocks.ScaleAttention(6, 2, 4), [features, scores], (0, 5, 8, 9))
