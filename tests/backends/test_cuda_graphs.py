"""Every op and a whole network in a CUDA graph, replayed with other inputs.

Without a GPU the same steps run without a graph: what is fed in, and what is held against what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import op_calls
import pytest
import torch
from model_checks import shake
from op_calls import CALLS, OpCall
from torch import Tensor

import attnops
from attnops._op import plans
from attnops.models import create_model
from attnops.nn import Hamburger

OP = "local_attention"
EVERY = CALLS | {
    "upsample_argmax": OpCall(
        "upsample_argmax", ((2, 4, 2, 3),), lambda m, x: m.upsample_argmax(x, (5, 7))
    )
}
WARM = 3  # calls before the capture: by then they are planned

Call = Callable[..., list[Tensor]]


@pytest.fixture(autouse=True)
def afresh():
    plans.forget()


def captured(call: Call, given: Sequence[Tensor]) -> Call:
    """`call` as a graph: a function of inputs, which go where copies of `given` were."""
    inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in given]
    outputs: list[Tensor] = []
    run = lambda: outputs.__setitem__(slice(None), call(*inputs))  # noqa: E731
    if given[0].is_cuda:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM):
                call(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        run = graph.replay

    def replay(*others: Tensor) -> list[Tensor]:
        with torch.no_grad():
            for x, other in zip(inputs, others, strict=True):
                x.copy_(other)
        run()
        return [x.detach().clone() for x in outputs]

    return replay


@pytest.mark.parametrize("layout", op_calls.LAYOUTS)
@pytest.mark.parametrize("name", EVERY)
def test_an_op_in_a_graph(name, layout, device, monkeypatch):
    monkeypatch.setattr(op_calls, "TARGET", op_calls.TARGET.to(device))  # no copy is captured
    call = EVERY[name]

    def results(*leaves: Tensor) -> list[Tensor]:
        out = call.call(attnops, *leaves)
        if not out.requires_grad:
            return [out]
        weights = torch.linspace(-1, 1, out.numel(), device=device).view(out.shape)
        grads = torch.autograd.grad(out, leaves, weights, allow_unused=True)
        return [out, *(grad for grad in grads if grad is not None)]

    def given(seed: int) -> list[Tensor]:
        return [x.to(device).requires_grad_() for x in call.tensors(layout, seed=seed)]

    replay = captured(results, given(0))
    found = {seed: replay(*given(seed)) for seed in (1, 2)}
    for seed, outputs in found.items():
        for actual, expected in zip(outputs, results(*given(seed)), strict=True):
            torch.testing.assert_close(actual, expected.detach(), rtol=0, atol=0)
    assert not torch.equal(found[1][0], found[2][0])


def test_a_network_in_a_graph(device):
    model = shake(create_model("segnext_t", num_classes=5, seed=3)).to(device).eval()
    (part,) = (m for m in model.modules() if isinstance(m, Hamburger))
    part.bases = part.bases.to(device)  # drawn once, on CPUs

    def images(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        made = torch.randn(2, 3, 64, 96, generator=generator).to(device)
        return made.contiguous(memory_format=torch.channels_last)

    def logits(x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [model(x)["out"]]

    replay = captured(logits, [images(0)])
    found = [replay(images(seed))[0] for seed in (1, 2)]
    for seed, actual in enumerate(found, 1):
        torch.testing.assert_close(actual, logits(images(seed))[0], rtol=1e-4, atol=1e-4)
    assert (found[0] - found[1]).abs().max() > 0.1
