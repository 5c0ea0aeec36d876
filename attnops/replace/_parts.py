"""What recognisers look at: plain convolutions, chains of convolution, norm and activation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
# Of a random tensor the shape; of several in a list the shapes; a number is given as it is.
Input = tuple[int, ...] | list[tuple[int, ...]] | int


class Unsupported(Exception):
    """A module looks like a known one, but does something that ours does not; says what."""


def _call(module: nn.Module, *inputs: object) -> object:
    return module(*inputs)


@dataclass(frozen=True)
class Candidate:
    """A module that may take the place of another.

    Attributes:
        module: ours, made of the other one's parts.
        inputs: what both take, for the comparison.
        note: what a reader of the report should know.
        call: from a module and inputs to what is compared.
        derived: None; or the class that the other module itself gets, instead of being exchanged.
            Then `module` is a stand-in of that class, for the comparison.
    """

    module: nn.Module
    inputs: tuple[Input, ...]
    note: str = ""
    call: Callable[..., object] = _call
    derived: type[nn.Module] | None = None


# Given a module: None if it is something else; the candidates, best first; or Unsupported.
Recogniser = Callable[[nn.Module], list[Candidate] | None]


def has_children(module: nn.Module, *names: str) -> bool:
    return all(isinstance(getattr(module, name, None), nn.Module) for name in names)


def plain_conv(module: nn.Module, what: str, **expected: object) -> nn.Conv2d:
    """`module` if it is a convolution that is nothing but its weight and bias.

    Args:
        what: its name in messages.
        expected: attributes and their values.
    """
    if not isinstance(module, nn.Conv2d) or type(module).forward is not nn.Conv2d.forward:
        raise Unsupported(f"{what} is a {type(module).__name__}, not a plain Conv2d")
    if is_hooked(module) or hasattr(module, "parametrizations"):
        raise Unsupported(f"{what} has hooks or parametrizations")
    if module.padding_mode != "zeros":
        raise Unsupported(f"{what} pads with {module.padding_mode!r}")
    for name, value in expected.items():
        found = getattr(module, name)
        if found != value:
            raise Unsupported(f"{what} has {name}={found}, not {value}")
    return module


def pointwise_conv(module: nn.Module, what: str, **expected: object) -> nn.Conv2d:
    return plain_conv(
        module, what, kernel_size=(1, 1), stride=(1, 1), padding=(0, 0), groups=1, **expected
    )


def depthwise_conv(module: nn.Module, what: str, channels: int) -> nn.Conv2d:
    """An odd depthwise kernel that keeps the size of the map."""
    conv = plain_conv(module, what, stride=(1, 1), dilation=(1, 1), groups=channels)
    if conv.in_channels != channels or conv.out_channels != channels:
        raise Unsupported(f"{what} is not depthwise")
    if any(side % 2 == 0 for side in conv.kernel_size):
        raise Unsupported(f"{what} has an even kernel {conv.kernel_size}")
    if conv.padding != tuple(side // 2 for side in conv.kernel_size):
        raise Unsupported(f"{what} does not keep the size of the map")
    return conv


@dataclass(frozen=True)
class Chain:
    """A convolution with what follows it; None where nothing of that kind does."""

    conv: nn.Module
    norm: nn.Module | None
    relu: bool
    dropout: nn.Module | None


def chain(module: nn.Module, what: str, norms: tuple[type[nn.Module], ...] = NORMS) -> Chain:
    """The parts of a Sequential, however nested, or of a wrapper such as mmcv's ConvModule."""
    conv = norm = dropout = None
    relu = False
    for leaf in (m for m in module.modules() if not any(m.children())):
        if isinstance(leaf, nn.Conv2d) and conv is None:
            conv = leaf
        elif isinstance(leaf, norms) and norm is None:
            norm = leaf
        elif isinstance(leaf, nn.ReLU):
            relu = True
        elif isinstance(leaf, nn.modules.dropout._DropoutNd):
            dropout = leaf
        elif not isinstance(leaf, nn.Identity):
            raise Unsupported(f"{what} holds a {type(leaf).__name__}")
    if conv is None:
        raise Unsupported(f"{what} holds no convolution")
    return Chain(conv, norm, relu, dropout)


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """A module without memory, whose parts are about to be exchanged."""
    with torch.device("meta"):
        return make()


def is_hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
