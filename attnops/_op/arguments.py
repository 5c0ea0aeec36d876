"""The arguments of a call, taken apart into its tensors and all else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_TENSORS = (Tensor, torch.nn.Parameter)
_LISTS = (tuple, list)
_EXACT = {int, bool, str, type(None), torch.dtype}  # equal values of one type mean the same


class Place(NamedTuple):
    """Stands for a tensor: its number among those of the call."""

    number: int


def take_apart(values: Iterable[Any], tensors: list[Tensor], rest: list[Any]) -> bool:
    """Add the tensors among `values`, in lists too, to one list, and what tells calls apart that
    differ in anything else to another one. False: these are no values to tell apart."""
    for value in values:
        kind = type(value)
        if kind in _TENSORS:
            tensors.append(value)
            rest.append(Place)
        elif kind in _EXACT:
            rest += (kind, value)
        elif kind is list or kind is tuple:
            rest += (kind, len(value))
            if not take_apart(value, tensors, rest):
                return False
        elif kind is float and value == value:  # NaN equals nothing
            rest += (kind, value, math.copysign(1.0, value))
        else:
            return False
    return True


def emptied(value: Any, tensors: list[Tensor]) -> Any:
    """A template: `value` with a Place for each tensor in it, which are added to `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return Place(len(tensors) - 1)
    if type(value) in (list, tuple):
        return type(value)([emptied(item, tensors) for item in value])
    return value


def template(values: Any, tensors: Sequence[Tensor]) -> Any:
    """The one that gives `values` of `tensors`; None where another tensor is among the values."""
    places = {id(tensor): Place(number) for number, tensor in enumerate(tensors)}
    try:
        return _templated(values, places)
    except KeyError:
        return None


def _templated(value: Any, places: dict[int, Place]) -> Any:
    if isinstance(value, Tensor):
        return places[id(value)]
    if type(value) in (list, tuple):
        return type(value)(_templated(item, places) for item in value)
    return value


def filled(given: Any, tensors: Sequence[Any]) -> Any:
    """A template with `tensors` in their places."""
    kind = type(given)
    if kind is Place:
        return tensors[given[0]]
    if kind is tuple or kind is list:  # a call for each item of a list would take too long
        return kind(
            [
                tensors[item[0]]
                if type(item) is Place
                else filled(item, tensors)
                if type(item) in _LISTS
                else item
                for item in given
            ]
        )
    return given


def places_in(given: Any) -> Iterator[Place]:
    """The places in a template, in order."""
    if type(given) is Place:
        yield given
    elif isinstance(given, (tuple, list)):
        for item in given:
            yield from places_in(item)
