"""Weights from published files into our networks and blocks, and back.

Every file beside this one holds the formats of one family, as tables of names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._files import read_state
from ._mapping import Format, MappingError, State, listed

__all__ = [
    "Format",
    "LoadReport",
    "MappingError",
    "checkpoint_styles",
    "export_checkpoint",
    "formats_of",
    "load_checkpoint",
]

OWN = "attnops"
_COUNTER = "num_batches_tracked"
FormatsOf = Callable[[Any], Iterable[Format]]
_FORMATS: dict[type[nn.Module], FormatsOf] = {}


def formats_of(cls: type[nn.Module]) -> Callable[[FormatsOf], FormatsOf]:
    """Decorator: the function gives the published formats of a model of class `cls`."""

    def add(function: FormatsOf) -> FormatsOf:
        _FORMATS[cls] = function
        return function

    return add


@dataclass(frozen=True)
class LoadReport:
    """What `load_checkpoint` did.

    Attributes:
        style: the naming that was recognised.
        loaded: published keys whose tensors were taken over, by our names.
        dropped: published keys that were left out: classifiers of backbones, repeated tensors.
        kept: our keys that kept their values: those outside a backbone's file, and BatchNorm's
            counters, where the file has none.
        added: our keys that were made up: zero biases of convolutions that have none in the file.
    """

    style: str
    loaded: dict[str, str]
    dropped: list[str]
    kept: list[str]
    added: list[str]

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded, named as in {self.style!r} checkpoints"]
        for keys, what in (
            (self.added, "zero biases added"),
            (self.dropped, "tensors of the file left out"),
            (self.kept, "tensors of the model kept as they were"),
        ):
            if keys:
                lines.append(f"{len(keys)} {what}: {listed(keys, 4)}")
        return "\n".join(lines)


def checkpoint_styles(model: nn.Module) -> list[str]:
    """Styles that `load_checkpoint` recognises and `export_checkpoint` writes for `model`."""
    return [format.style for format in _formats(model)]


def _formats(model: nn.Module) -> list[Format]:
    found = [Format(OWN, (("**", "**"),))]
    for cls in type(model).__mro__:
        if cls in _FORMATS:
            return found + list(_FORMATS[cls](model))
    return found


def load_checkpoint(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
) -> LoadReport:
    """Load weights, published ones too, into a network or a block of attnops.nn.

    The naming is recognised by the keys: our own, mmsegmentation's, the official repositories',
    backbones alone (as trained on ImageNet). {"state_dict": ...} and `module.` are taken off. Files
    are read without running code from them; .safetensors too.

    Args:
        model: what to load into. A model on the meta device gets the file's tensors themselves.
        source: a file, a folder that `save_pretrained` wrote, or a state dict.

    Returns:
        A report of what was mapped; print it.

    Raises:
        MappingError: a ValueError. Nothing is loaded unless all keys fit; the message names those
            that are missing, unexpected or of another shape.
        FileNotFoundError: there is no such file.

    Example:
        >>> import attnops
        >>> model = attnops.models.create_model("segnext_t", num_classes=150)
        >>> published = attnops.models.export_checkpoint(model, "mmseg")
        >>> print(attnops.models.load_checkpoint(model, {"state_dict": published}))
        550 tensors loaded, named as in 'mmseg' checkpoints
    """
    state = read_state(source)
    target = model.state_dict()
    ours = set(target)
    formats = _formats(model)
    format = max(formats, key=lambda f: f.overlap(state, ours))  # the first of equals
    if format.overlap(state, ours) == 0:
        styles = ", ".join(f.style for f in formats)
        raise MappingError(
            f"load_checkpoint: no key of the file fits a {type(model).__name__}, tried {styles}; "
            f"the file has {listed(state)}"
        )
    found, rest = format.to_ours(state, model)
    unexpected = [key for key in rest if not format.is_dropped(key)]
    unexpected += [key for key in found if key not in ours]
    missing = [key for key in target if key not in found]
    kept = [k for k in missing if k.endswith(_COUNTER) or (format.partial and not _begun(k, found))]
    missing = [key for key in missing if key not in kept]
    _refuse_unless_all_fit(model, format, found, target, missing, unexpected)

    meta = any(value.is_meta for value in target.values())
    for key in kept:
        found[key] = target[key]
    model.load_state_dict(found, assign=meta)
    names = {key: name for key in state if (name := format.our_name(key)) in found}
    dropped = [key for key in state if key not in names]
    taken = {*names.values(), *kept}
    return LoadReport(format.style, names, dropped, kept, [k for k in found if k not in taken])


def _begun(key: str, found: State) -> bool:
    """Whether the file holds something of the same top-level child of the model."""
    child = key.partition(".")[0] + "."
    return any(name.startswith(child) for name in found)


def _refuse_unless_all_fit(
    model: nn.Module,
    format: Format,
    found: State,
    target: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
) -> None:
    def in_file(key: str) -> str:
        name = format.published_name(key)
        return key if name in (None, key) else f"{name} (here {key})"

    missing = [in_file(key) for key in missing]
    misshapen = [
        f"{in_file(key)} {list(found[key].shape)} instead of {list(target[key].shape)}"
        for key in found
        if key in target and found[key].shape != target[key].shape
    ]
    problems = (("missing", missing), ("unexpected", unexpected), ("other shapes", misshapen))
    texts = [f"{what}: {listed(keys)}" for what, keys in problems if keys]
    if texts:
        raise MappingError(
            f"load_checkpoint: the file, named as in {format.style!r} checkpoints, does not fit "
            f"this {type(model).__name__}, and nothing was loaded. {'; '.join(texts)}. Create the "
            "network with the options of the checkpoint (num_classes among them)"
        )


@torch.no_grad()
def export_checkpoint(model: nn.Module, style: str) -> State:
    """The weights of `model` under published names; the tensors are the model's own.

    Args:
        model: one of our networks, or a block of attnops.nn.
        style: one of `checkpoint_styles(model)`: "mmseg", "official", "attnops", ...

    Raises:
        ValueError: there is no such style for the model.
    """
    formats = {format.style: format for format in _formats(model)}
    if style not in formats:
        raise ValueError(
            f"export_checkpoint: a {type(model).__name__} has no style {style!r}; expected one of "
            f"{', '.join(formats)}"
        )
    return formats[style].to_published(model.state_dict(), model)
