"""What users do to the parts of a model, and what has to come out: for every module and network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

CONVOLUTIONS = (nn.Conv2d,)


def prepared(module: nn.Module, *, training: bool) -> nn.Module:
    """In float64, with no part that draws, and nothing at 0 or 1 that could hide a mistake."""
    torch.manual_seed(1)
    module = module.double().train(training)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.modules.dropout._DropoutNd):
                part.p = 0.0
            if isinstance(getattr(part, "drop_path", None), float):
                part.drop_path = 0.0
            for parameter in part.parameters(recurse=False):
                if not parameter.any():  # a gate that starts closed hides all that is behind it
                    parameter.normal_(std=0.1)
            if isinstance(part, (nn.BatchNorm2d, nn.GroupNorm)):
                part.weight.uniform_(0.5, 1.5)
                part.bias.uniform_(-0.2, 0.2)
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.uniform_(-0.2, 0.2)
                part.running_var.uniform_(0.5, 1.5)
    return module


def leaves(module: nn.Module) -> dict[str, nn.Module]:
    return {name: part for name, part in module.named_modules() if not any(part.children())}


def convolutions(module: nn.Module) -> list[str]:
    return [n for n, part in module.named_modules() if isinstance(part, nn.Conv2d)]


def with_part(module: nn.Module, name: str, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A copy of `module` in which `change` of the part `name` stands in its place."""
    twin = copy.deepcopy(module)
    parent, _, last = name.rpartition(".")
    setattr(twin.get_submodule(parent), last, change(twin.get_submodule(name)))
    return twin


class Adapter(nn.Module):
    """base(x) + delta(x), as low-rank adapters are put around a layer."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        self.delta = copy.deepcopy(base)
        with torch.no_grad():
            self.delta.weight.normal_(std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.delta(x)


def merged(adapter: Adapter) -> nn.Conv2d:
    """The convolution that the adapter is equal to."""
    conv = adapter.base
    with torch.no_grad():
        conv.weight += adapter.delta.weight
        if conv.bias is not None:
            conv.bias += adapter.delta.bias
    return conv


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def _pruned(conv: nn.Conv2d) -> nn.Module:
    return prune.l1_unstructured(conv, "weight", 0.5)


def _spectral(conv: nn.Conv2d) -> nn.Module:
    torch.manual_seed(5)  # it starts from a random vector
    return spectral_norm(conv).eval()  # in training it would iterate in every call


def _weight_norm(conv: nn.Conv2d) -> nn.Module:
    conv = weight_norm(conv)
    with torch.no_grad():
        conv.weight_g *= 1.5
    return conv


def _parametrised(conv: nn.Conv2d) -> nn.Module:
    nn.utils.parametrize.register_parametrization(conv, "weight", Doubled())
    return conv


def _new_weight_norm(conv: nn.Conv2d) -> nn.Module:
    conv = parametrizations.weight_norm(conv)
    with torch.no_grad():
        conv.parametrizations.weight.original0 *= 1.5
    return conv


REPARAMETRISATIONS: dict[str, Callable[[nn.Conv2d], nn.Module]] = {
    "prune": _pruned,
    "spectral_norm": _spectral,
    "weight_norm": _weight_norm,
    "parametrize": _parametrised,
    "parametrizations.weight_norm": _new_weight_norm,
}


def with_effective_weight(change: Callable[[nn.Conv2d], nn.Module]) -> Any:
    """A change to a plain convolution of the weight that `change` makes a convolution use."""

    def plain(conv: nn.Conv2d) -> nn.Conv2d:
        changed = change(copy.deepcopy(conv))
        used = []
        handle = changed.register_forward_hook(lambda m, *_: used.append(m.weight.detach().clone()))
        changed(conv.weight.new_zeros(1, conv.in_channels, 32, 32))
        handle.remove()
        with torch.no_grad():
            conv.weight.copy_(used[0])
        return conv

    return plain


@contextmanager
def watched(parts: dict[str, nn.Module]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Forward hooks on the parts: what each returned, and a copy from that moment."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in parts}
    handles = []
    for name, part in parts.items():

        def keep(module: nn.Module, args: Any, out: Tensor, name: str = name) -> None:
            seen[name].append((out, out.detach().clone()))

        handles.append(part.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def check_close(found: Tensor, wanted: Tensor, what: str = "") -> None:
    """Up to rounding in float64, over the largest value."""
    assert found.shape == wanted.shape, what
    assert (found - wanted).abs().max() <= 1e-10 * wanted.abs().max().clamp(min=1e-3), what
