"""Networks under torch.compile, torch.export and the tracers."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import CLASSES, FAMILIES, SIZE, tiny_network
from torch import nn

from attnops.models.backbones.pooling import MaxPool3x3

NEAR_SIZES = ((113, 121), (129, 137), (126, 132), (120, 133))


def counting_backend():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    return graphs, backend


def test_two_graphs_serve_all_sizes_for_deeplab():
    """The first has fixed sizes; the second must not ask for even or odd ones."""
    torch._dynamo.reset()
    graphs, backend = counting_backend()
    model = tiny_network("deeplab").eval()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        for size in NEAR_SIZES:
            images = torch.randn(1, 3, *size)
            torch.testing.assert_close(compiled(images)["out"], model(images)["out"])
    assert len(graphs) == 2


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_pooling_of_symbolic_sizes(stride, ceil_mode):
    torch._dynamo.reset()
    graphs, backend = counting_backend()
    pool = MaxPool3x3(stride, ceil_mode)
    plain = nn.MaxPool2d(3, stride, 1, ceil_mode=ceil_mode)
    compiled = torch.compile(pool, backend=backend, fullgraph=True, dynamic=True)
    for size in ((9, 9), (8, 9), (9, 8), (8, 8), (31, 50), (2, 20)):
        x = torch.randn(2, 3, *size).relu().requires_grad_()  # with ties
        wanted = plain(x)
        grad = torch.randn_like(wanted)
        for found in (pool(x), compiled(x)):
            assert torch.equal(found, wanted)
            grads = [torch.autograd.grad(y, x, grad, retain_graph=True)[0] for y in (found, wanted)]
            assert torch.equal(*grads)
    assert len(graphs) <= 2


@pytest.mark.parametrize(
    ("family", "training"), [("ann", True), ("deeplab", False), ("sanet", False)]
)
def test_compiled_outputs_are_those_of_the_network(family, training):
    """Of the compiled network its own loss, and of a compiled loss the same number."""
    torch._dynamo.reset()
    model = tiny_network(family).train(training)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    images, target = torch.randn(2, 3, *SIZE), torch.randint(CLASSES, (2, *SIZE))
    outputs = model(images)
    wanted = model.loss(outputs, target)
    compiled = torch.compile(model, backend="eager", fullgraph=True)(images)
    assert set(compiled) == set(outputs)
    torch.testing.assert_close(compiled["out"], outputs["out"])
    torch.testing.assert_close(model.loss(compiled, target), wanted)
    with pytest.raises(ValueError, match="target must be"):
        model.loss(compiled, target[:, 1:])


def test_a_compiled_loss():
    torch._dynamo.reset()
    model = tiny_network("deeplab").eval()
    images, target = torch.randn(2, 3, *SIZE), torch.randint(CLASSES, (2, *SIZE))

    @torch.compile(backend="eager", fullgraph=True)
    def whole(images, target):
        return model.loss(model(images), target)

    torch.testing.assert_close(whole(images, target), model.loss(model(images), target))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_outputs_are_a_plain_dict(strict):
    model = tiny_network("sanet").eval()
    images = torch.randn(1, 3, *SIZE)
    program = torch.export.export(model, (images,), strict=strict)
    with torch.no_grad():
        found, wanted = program.module()(images), model(images)["out"]
    assert type(found) is dict and set(found) == {"out"}
    torch.testing.assert_close(found["out"], wanted)


def test_a_traced_network():
    model = tiny_network("sanet").eval()
    images = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        traced = torch.jit.trace(model, images, strict=False, check_trace=False)
        torch.testing.assert_close(traced(images)["out"], model(images)["out"])


@pytest.mark.parametrize("family", FAMILIES)
def test_symbolic_trace_says_what_to_do(family):
    with pytest.raises(TypeError, match=r"use torch\.export\.export\(model, \(images,\)\)"):
        torch.fx.symbolic_trace(tiny_network(family))
