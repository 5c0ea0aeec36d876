"""Reading pickles without running what they name.

A pickle names functions and classes, which an ordinary unpickler imports and calls. Here only the
functions that rebuild tensors are what they are; every other name becomes a `StandIn`, which takes
whatever the pickle does to it and does nothing.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# A file that names these was made to do harm; everything else is kept out quietly. (`commands` is
# what pickles for Python 2, torch.save's, call subprocess.)
_SYSTEM = ("os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "ctypes", "pty")
_HARMFUL_MODULES = frozenset((*_SYSTEM, "commands", "importlib", "runpy", "webbrowser"))
_HARMFUL_BUILTINS = frozenset(("eval", "exec", "compile", "__import__", "open", "breakpoint"))
_BUILTINS = ("builtins", "__builtin__", "io", "_io")


class HarmfulPickle(pickle.UnpicklingError):
    """The pickle would call something that no checkpoint needs; the message names it."""


class StandIn(dict):
    """Takes the place of an object whose class is not loaded; a dict, as many of those are.

    Attributes:
        full_name: module and name of what it stands for.
    """

    full_name = "an object"
    dump_patches = False  # torch.load asks classes of modules for it

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        return dict.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __call__(self, *args: Any, **kwargs: Any) -> StandIn:
        return StandIn()

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass

    __hash__ = object.__hash__  # it may be a key


class _Rebuild:
    """A function of PyTorch's, callable, and nothing on it that a pickle could change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


def _of_subclass(rebuild: Callable[..., Any], kind: object, args: tuple, state: object) -> Any:
    """A tensor with attributes of its own or of another class: the tensor alone."""
    return rebuild(*args)


_REBUILD: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", name): getattr(torch._utils, name)
    for name in (
        "_rebuild_tensor",
        "_rebuild_tensor_v2",
        "_rebuild_tensor_v3",
        "_rebuild_parameter",
        "_rebuild_parameter_with_state",
    )
} | {("torch._tensor", "_rebuild_from_type_v2"): _of_subclass}


class Unpickler(pickle.Unpickler):
    """Reads containers, numbers, text and tensors; stand-ins for the rest.

    Raises:
        HarmfulPickle: the file names something that runs commands or code.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REBUILD:
            return _Rebuild(_REBUILD[module, name])
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        harmful = module in _BUILTINS and name.partition(".")[0] in _HARMFUL_BUILTINS
        if harmful or module.partition(".")[0] in _HARMFUL_MODULES:
            raise HarmfulPickle(f"{module}.{name}")
        return type(name.rpartition(".")[2], (StandIn,), {"full_name": f"{module}.{name}"})


class _Module:
    """What torch.load takes for the module `pickle`."""

    __name__ = "attnops.models.checkpoints._unpickle"
    Unpickler = Unpickler

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()


def read_quietly(path: Path) -> Any:
    """What `torch.save` wrote to `path`, on the CPU, with stand-ins for what is not loaded.

    Raises:
        HarmfulPickle, and whatever a broken file leads to.
    """
    with path.open("rb") as file:  # newer torch.load goes by the name of a path
        return torch.load(file, map_location="cpu", weights_only=False, pickle_module=_Module())
