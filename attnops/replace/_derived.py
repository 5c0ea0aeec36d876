"""Classes derived from those of other people's modules, which override a method or two."""

from __future__ import annotations

import copy
import functools
from typing import Any

from torch import nn


class Behaviour:
    """Base of what a derived class adds to the class of a module.

    Attributes:
        adds: for the report.
    """

    adds = ""

    @classmethod
    def describe(cls) -> str:
        """The original's class and what it got, for the report."""
        added = [kind.adds for kind in cls.behaviours]
        return f"{cls.__name__} with {' and '.join(added)}"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """For copies and files: the class is made again, it cannot be found by its name."""
        _, _, *rest = super().__reduce_ex__(max(2, protocol))
        return _empty, (self.behaviours, self.original), *rest


@functools.cache
def derived(behaviours: tuple[type[Behaviour], ...], original: type[nn.Module]) -> type[nn.Module]:
    """`original` with `behaviours` in front: same name, still a subclass of it."""
    attributes = {
        "__module__": __name__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "behaviours": behaviours,
        "original": original,
    }
    return type(original)(original.__name__, (*behaviours, original), attributes)


def _empty(behaviours: tuple[type[Behaviour], ...], original: type[nn.Module]) -> nn.Module:
    kind = derived(behaviours, original)
    return kind.__new__(kind)


def stand_in(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """A module of the class `kind` on everything that `module` has."""
    twin = copy.copy(module)
    twin.__class__ = kind
    return twin
