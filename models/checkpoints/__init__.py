"""Weights from published files into our networks and blocks, and back.

Every file beside this one whose name begins with a letter holds the formats of one family, as
tables of names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attnops._checks import check_choice

from .._model import SegmentationModel
from ._files import read_source
from ._mapping import Format, MappingError, State, listed
from ._parts import Located, Part, located, parts_of, unwrapped
from ._plan import COUNTER, Plan, plan
from ._values import initial_values, put, without_values

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
CLASSES = ("strict", "drop")
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
        dropped: keys of the file that were left out: classifiers of backbones, repeated tensors,
            classifiers for another number of classes.
        kept: our keys that kept their values: those outside a backbone's file, BatchNorm's
            counters where the file has none, classifiers for another number of classes. Where
            the model was on the meta device they are initialised.
        added: our keys that were made up: zero biases of convolutions that have none in the file.
        part: what in the file was taken, such as "state_dict"; empty: the file itself.
        others: other state dicts in the file, averaged weights for example.
        classes: numbers of classes in the file and in the model, where they differ.
    """

    style: str
    loaded: dict[str, str]
    dropped: list[str]
    kept: list[str]
    added: list[str]
    part: str = ""
    others: tuple[str, ...] = ()
    classes: tuple[int, int] | None = None

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded, named as in {self.style!r} checkpoints"]
        if self.others:
            lines.append(f"taken: {self.part}; the file also has {listed(self.others, 4)}")
        if self.classes is not None:
            there, here = self.classes
            lines.append(f"{there} classes in the file, {here} in the model: classifiers left out")
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
    return [format.style for format in _formats(unwrapped(model, _is_ours)[-1])]


def _is_ours(model: nn.Module) -> bool:
    return isinstance(model, SegmentationModel) or any(
        cls in _FORMATS for cls in type(model).__mro__
    )


def _formats(model: nn.Module) -> list[Format]:
    found = [Format(OWN, (("**", "**"),))]
    for cls in type(model).__mro__:
        if cls in _FORMATS:
            return found + list(_FORMATS[cls](model))
    return found


def load_checkpoint(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    classes: str = "strict",
    part: str | None = None,
) -> LoadReport:
    """Load weights, published ones too, into a network or a block of attnops.nn.

    The naming is recognised by the keys: our own, mmsegmentation's, the official repositories',
    backbones alone (as trained on ImageNet). What training tools put around a state dict is taken
    off: dicts such as {"state_dict": ...}, {"model": ...} or {"params": ...}, however nested, and
    prefixes of DataParallel, torch.compile, FSDP, Lightning modules (`model.`, `net.`) and averaged
    models. Of raw and averaged (EMA) weights in one file the raw ones are taken; `part` chooses
    the others. A model inside of such a wrapper is found in it.

    Files are read without running code from them: what a checkpoint holds besides tensors, as
    mmengine's do, is passed over. .safetensors too, whatever the file is called.

    Floats of other widths are converted to those of the model; other dtypes, sparse, quantized and
    meta tensors are refused.

    Args:
        model: what to load into. A model on the meta device gets the file's tensors themselves,
            and initial values for what the file has not.
        source: a file, a folder that `save_pretrained` wrote, or a state dict.
        classes: "strict", or "drop": where the file has another number of classes than the model,
            the classifiers, those of auxiliary heads too, keep their values.
        part: which state dict of the file to take, such as "state_dict_ema"; None: see above.

    Returns:
        A report of what was mapped; print it.

    Raises:
        MappingError: a ValueError. Nothing is loaded unless all keys fit; the message names those
            that are missing, unexpected, of another shape or kind, or says what the file is.
        FileNotFoundError: there is no such file.
        TypeError: `model` is no module, `source` neither a path nor a mapping.

    Example:
        >>> import attnops
        >>> model = attnops.models.create_model("segnext_t", num_classes=150)
        >>> published = attnops.models.export_checkpoint(model, "mmseg")
        >>> print(attnops.models.load_checkpoint(model, {"state_dict": published}))
        550 tensors loaded, named as in 'mmseg' checkpoints
    """
    check_choice("load_checkpoint", "classes", classes, CLASSES)
    if not isinstance(model, nn.Module):
        raise TypeError(f"load_checkpoint: expected a module, got a {type(model).__name__}")
    found = read_source(source)
    where = "the mapping" if isinstance(source, Mapping) else str(source)
    parts = parts_of(found, where, part)
    model, taken, made = _chosen(unwrapped(model, _is_ours), parts, classes == "drop")
    empty = without_values(model)
    values = dict(made.found)
    lacking = {key: x for key, x in empty.items() if key not in values}
    counters = {key for key in lacking if key.endswith(COUNTER)}
    device = next((value.device for value in values.values()), torch.device("cpu"))
    if lacking.keys() - counters:
        others = {key: x for key, x in lacking.items() if key not in counters}
        values |= initial_values(model, others, device)
    values |= {key: torch.zeros_like(lacking[key], device=device) for key in counters}
    put(model, values)

    known = {*made.loaded.values(), *made.kept}
    return LoadReport(
        made.format.style,
        made.loaded,
        made.dropped,
        made.kept,
        [key for key in made.found if key not in known],
        taken.path,
        tuple(other.path for other in parts if other is not taken and other.path),
        made.classes,
    )


class _Fit(NamedTuple):
    """Where names of a model are in a part of the file; `places` as `located` gives them."""

    model: nn.Module
    part: Part
    matches: int
    places: list[tuple[int, int, Located]]


def _chosen(
    models: list[nn.Module], parts: list[Part], drop_classes: bool
) -> tuple[nn.Module, Part, Plan]:
    """The part of the file and the model that fit best, parts of lower rank first, and how."""
    fits: list[_Fit] = []
    for model in reversed(models):  # the first of equals is the inner one
        names = model.state_dict().keys()
        published = [format.names_of(names) for format in _formats(model)]
        for part in parts:
            places = located(part.state, published, names)
            if places:
                fits.append(_Fit(model, part, places[0][0], places))
    if not fits:
        model = models[-1]
        styles = ", ".join(format.style for format in _formats(model))
        raise MappingError(
            f"load_checkpoint: no key of the file fits a {type(model).__name__}, tried {styles}; "
            f"the file has {listed(parts[0].state)}"
        )
    rank = min(fit.part.rank for fit in fits)
    fits = [fit for fit in fits if fit.part.rank == rank]
    most = max(fit.matches for fit in fits)
    fits = [fit for fit in fits if fit.matches == most]
    model, part, _, places = fits[0]
    rivals = [fit.part.path for fit in fits if fit.model is model]
    if len(rivals) > 1 and rank == 1:
        raise MappingError(
            f"load_checkpoint: {listed(rivals)} of the file all fit; choose one with part="
        )
    formats = _formats(model)
    target = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    first = None
    for matches, index, place in places:
        made = plan(model, formats[index], place, matches, target, drop_classes)
        if not made.problems:
            return model, part, made
        first = first or made
    raise first.error(model)


@torch.no_grad()
def export_checkpoint(model: nn.Module, style: str) -> State:
    """The weights of `model` under published names.

    The tensors are the model's own where they can be; what a file holds twice, or what is not
    contiguous, is a copy, so that every format (safetensors too) takes the result.

    Args:
        model: one of our networks, or a block of attnops.nn.
        style: one of `checkpoint_styles(model)`: "mmseg", "official", "attnops", ...

    Raises:
        ValueError: there is no such style for the model.
    """
    model = unwrapped(model, _is_ours)[-1]
    formats = {format.style: format for format in _formats(model)}
    if style not in formats:
        raise ValueError(
            f"export_checkpoint: a {type(model).__name__} has no style {style!r}; expected one of "
            f"{', '.join(formats)}"
        )
    seen: set[tuple[torch.device, int]] = set()
    state = {}
    for key, value in formats[style].to_published(model.state_dict(), model).items():
        storage = (value.device, value.untyped_storage().data_ptr())
        repeated = storage in seen and not value.is_meta and value.numel() > 0
        seen.add(storage)
        state[key] = (
            value.clone(memory_format=torch.contiguous_format) if repeated else value.contiguous()
        )
    return state
