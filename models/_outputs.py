"""What a network returns: a dict that resizes its main map when somebody reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils import _pytree

SMALL = "_small"


class _Modes(NamedTuple):
    """Under which a forward ran."""

    grad: bool
    autocast: torch.dtype | None
    align_corners: bool


class Outputs(dict):
    """A dict of maps by name whose "out" is resized to the size of the images when it is read.

    So the loss, which takes the maps at their own resolution, never makes the map of all classes
    at the size of the images. Otherwise it is what a dict with "out" in it is; the map is made with
    gradients and autocast as they were in the forward.

    Attributes:
        maps: the maps at their own resolution by name, whether they are entries or not.
        size: (height, width) of the images; None where a dict was all that was given.
    """

    maps: dict[str, Tensor]
    size: tuple[int, int] | None
    _modes: _Modes | None

    def __init__(self, *entries: Any, **named: Any) -> None:
        super().__init__(*entries, **named)
        self.maps, self.size, self._modes = {}, None, None

    def __getitem__(self, key: str) -> Tensor:
        if key == "out":
            self._make()
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[str]:  # else dict(outputs) would not call __getitem__
        return super().__iter__()

    def get(self, key: str, default: Any = None) -> Any:
        if key == "out":
            self._make()
        return super().get(key, default)

    def _make(self) -> None:
        """Resize "out" if that was put off."""
        if "out" not in self or dict.__getitem__(self, "out") is not None:
            return
        small, modes = self.maps["out"], self._modes
        if torch.compiler.is_compiling():
            self["out"] = resized(small, self.size, modes.align_corners)
            return
        with torch.inference_mode(small.is_inference()), torch.set_grad_enabled(modes.grad):
            if small.is_meta:
                self["out"] = resized(small, self.size, modes.align_corners)
                return
            on = modes.autocast is not None
            with torch.autocast(small.device.type, dtype=modes.autocast, enabled=on):
                self["out"] = resized(small, self.size, modes.align_corners)


def _made_first(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Outputs, *arguments: Any) -> Any:
        self._make()
        return method(self, *arguments)

    call.__name__, call.__doc__ = method.__name__, method.__doc__
    return call


for _name in (
    *("values", "items", "pop", "popitem", "setdefault", "copy"),
    *("__eq__", "__ne__", "__or__", "__ror__", "__repr__"),
):
    setattr(Outputs, _name, _made_first(getattr(dict, _name)))


def resized(small: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    return interpolate(small, size, mode="bilinear", align_corners=align_corners)


def outputs_of(
    maps: dict[str, Tensor],
    size: tuple[int, int],
    resize: bool,
    show_small: bool,
    align_corners: bool,
    training: bool,
) -> dict[str, Tensor]:
    """The maps of a network as its outputs.

    Args:
        maps: at their own resolution.
        size: of the images.
        resize: whether "out" is an entry.
        show_small: whether `maps` are entries, with "_small" behind their names.
        align_corners: of the resize.
        training: whether a loss is likelier to follow than a look at "out".
    """
    small = {name + SMALL: x for name, x in maps.items()} if show_small else {}
    if _needs_plain_dict(maps["out"]):
        out = {"out": resized(maps["out"], size, align_corners)} if resize else {}
        return out | small
    outputs = Outputs()
    if resize:
        # In a compiled evaluation the resize belongs to the graph.
        now = torch.compiler.is_compiling() and not training
        outputs["out"] = resized(maps["out"], size, align_corners) if now else None
    outputs.update(small)
    outputs.maps, outputs.size = maps, tuple(size)
    outputs._modes = _Modes(torch.is_grad_enabled(), _autocast(maps["out"]), align_corners)
    return outputs


def _autocast(x: Tensor) -> torch.dtype | None:
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def _needs_plain_dict(x: Tensor) -> bool:
    """Whether the outputs leave the code that is running: a traced or a transformed function."""
    if torch.compiler.is_compiling():
        # Not is_exporting(), which is true in all that torch.compile traces.
        return torch.compiler._is_exporting_flag
    return torch.jit.is_tracing() or torch._C._functorch.is_functorch_wrapped_tensor(x)


def _flatten(outputs: Outputs) -> tuple[list[Tensor], tuple[Any, ...]]:
    """All entries ("out" too: a function of it is not the resized function of the small map), then
    the maps that are no entries.
    """
    hidden = {name: x for name, x in outputs.maps.items() if name + SMALL not in outputs}
    context = (tuple(outputs), tuple(hidden), outputs.size)
    return [*outputs.values(), *hidden.values()], context


def _unflatten(leaves: Iterable[Any], context: tuple[Any, ...]) -> Outputs:
    names, hidden, size = context
    values = list(leaves)
    outputs = Outputs(zip(names, values[: len(names)], strict=True))
    outputs.maps = dict(zip(hidden, values[len(names) :], strict=True))
    outputs.size = size
    return outputs


_pytree.register_pytree_node(Outputs, _flatten, _unflatten)
