"""Stand-ins in evaluation mode: the same function as after eval(), and nothing is touched."""

from __future__ import annotations

import copy
import functools
import threading

import pytest
import torch
from torch import nn

from attnops.nn import ScaleAttention
from attnops.nn.evaluation import evaluation_twin


def block() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.5))


def legacy(register, **options):
    def make() -> nn.Module:
        net = block()
        register(net[0], **options)
        return net

    return make


def shared() -> nn.Module:
    inner = block()
    return nn.Sequential(inner, nn.ReLU(), inner)


class Referring(nn.Module):
    """Calls its parts through what is no child."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner = block()
        inner = self.inner
        self.__dict__["other"] = {
            "module": inner,
            "list": [nn.ReLU(), inner],
            "nested": {"a": ([inner],)},
            "tuple": (inner, 3),
            "set": {inner},
            "method": inner.forward,
            "partial": functools.partial(lambda net, x: net(x), inner),
            "function": lambda x: inner(x),
        }[kind]
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        other = self.__dict__["other"]
        if self.kind in ("module", "method", "partial", "function"):
            return other(x)
        if self.kind == "nested":
            return other["a"][0][0](x)
        return next(part for part in other if isinstance(part, nn.Sequential))(x)


class Overridden(nn.Sequential):
    """Its forward is an attribute of the instance."""

    def __init__(self) -> None:
        super().__init__(*block())
        self.forward = functools.partial(Overridden._run, self)

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        return nn.Sequential.forward(self, x) + 1


class Parent(nn.Module):
    """A child knows its parent."""

    def __init__(self) -> None:
        super().__init__()
        self.net = block()
        self.child = nn.Identity()
        self.child.__dict__["parent"] = self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.child.parent.net(x)


MODULES = {
    "plain": block,
    "shared": shared,
    "parametrized": legacy(nn.utils.parametrizations.weight_norm),
    "spectral": legacy(nn.utils.parametrizations.spectral_norm),
    "old weight norm": legacy(nn.utils.weight_norm),
    "old spectral norm": legacy(nn.utils.spectral_norm),
    "overridden": Overridden,
    "parent": Parent,
    "scripted": lambda: nn.Sequential(torch.jit.script(block()), nn.Dropout()),
    "compiled": lambda: nn.Sequential(torch.compile(block(), backend="eager"), nn.Dropout()),
    **{
        f"in a {kind}": functools.partial(Referring, kind)
        for kind in (
            *("module", "list", "nested", "tuple", "set"),
            *("method", "partial", "function"),
        )
    },
}


@pytest.mark.filterwarnings("ignore")  # of what is deprecated
@pytest.mark.parametrize("name", MODULES)
def test_a_stand_in_does_what_eval_does(name):
    torch.manual_seed(0)
    net = MODULES[name]()
    net(torch.randn(2, 3, 8, 8))  # statistics that are none of those at the start
    x = torch.randn(2, 3, 8, 8)
    state = copy.deepcopy(net.state_dict())
    modes = {module: module.training for module in net.modules()}
    with torch.no_grad():
        found = evaluation_twin(net)(x)
        assert {module: module.training for module in net.modules()} == modes
        assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())
        wanted = net.eval()(x)
    assert torch.equal(found, wanted)
    assert evaluation_twin(net) is net


def test_a_compiled_module_is_compiled_once_for_all_stand_ins():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    for in_place in (True, False):
        net = Referring("module")
        if in_place:
            net.compile(backend=backend)
        else:
            net = torch.compile(net, backend=backend)
        outer = nn.Sequential(net)
        torch._dynamo.reset()
        graphs.clear()
        with torch.no_grad():
            for _ in range(3):
                evaluation_twin(outer)(torch.randn(2, 3, 8, 8))
        assert len(graphs) == 1, in_place


def test_hooks_fire():
    net = block()
    seen = []
    net[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    net[1].register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        found = evaluation_twin(net)(x)
        assert torch.equal(seen[0], net[0](x))
        assert torch.equal(found, net.eval()(x))


def test_what_a_forward_puts_into_its_containers_is_seen():
    net = nn.Sequential(nn.Dropout())
    head = ScaleAttention(4, 2, hidden_channels=4)
    head.keep_weights = True
    features = [torch.randn(1, 4, 8, 8), torch.randn(1, 4, 4, 4)]
    scores = [torch.randn(1, 3, 8, 8), torch.randn(1, 3, 4, 4)]
    assert head.weights is None and head.training
    with torch.no_grad():
        evaluation_twin(head)(features, scores)
        kept = head.weights
        head.eval()(features, scores)
    assert torch.equal(kept, head.weights) and kept.shape == (1, 2, 8, 8)
    assert net.training


def test_training_goes_on_meanwhile():
    """Steps beside predictions end where steps alone end."""

    def train(net: nn.Module, beside) -> dict[str, torch.Tensor]:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        generator = torch.Generator().manual_seed(1)
        for _ in range(40):
            x = torch.randn(4, 3, 8, 8, generator=generator)
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
            beside(net)
        return net.state_dict()

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    alone = train(copy.deepcopy(net), lambda net: None)
    stop, failures = threading.Event(), []

    def predict() -> None:
        while not stop.is_set():
            with torch.no_grad():
                twin = evaluation_twin(net)
                if any(module.training for module in twin.modules()):
                    failures.append("a stand-in trains")
                twin(torch.randn(1, 3, 8, 8, generator=torch.Generator()))

    threads = [threading.Thread(target=predict) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        beside = train(net, lambda net: failures.extend(m for m in net.modules() if not m.training))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    for key, value in alone.items():
        torch.testing.assert_close(beside[key], value)
    assert beside["1.num_batches_tracked"] == 40
