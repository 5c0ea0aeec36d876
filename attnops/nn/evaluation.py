"""Evaluating a module that may be training at the same time, without touching its mode."""

from __future__ import annotations

import copy
import functools
import sys
import types
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)

# What every module has of its own: parameters, buffers, hooks, children, mode.
_BASE = frozenset(nn.Module().__dict__)
_PLAIN = frozenset({int, float, bool, str, type(None)})
_DEPTH = 4  # of containers inside containers that are searched for modules


def evaluation_twin(module: M) -> M:
    """`module` in evaluation mode, without changing it: itself, or a stand-in for the purpose.

    If a module in it is in training mode, the result is a second tree of modules, of the same
    classes and in evaluation mode, on the same parameters, buffers and hooks: those very objects,
    nothing is copied but scripted modules (torch.jit.script). So `module` may train, or be
    evaluated, in other threads meanwhile. It takes a few microseconds a module.

    Attributes that refer to modules of the tree refer to their stand-ins there: modules, lists,
    tuples, dicts and sets of modules, bound methods, partial functions, functions that enclose a
    module. Compiled modules are compiled there too, by the same compiler, and share its code.
    Not replaced is what lies in objects of other kinds. Hooks are called with the stand-ins.
    `train` and `eval` of the modules are not called. An attribute that a forward assigns to its
    module stays with the stand-in; what it puts into a dict or list of its module is seen by all.

    Args:
        module: any module.

    Example:
        >>> import torch
        >>> from attnops.nn.evaluation import evaluation_twin
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Dropout())
        >>> x = torch.ones(2, 3, 8, 8)
        >>> torch.equal(evaluation_twin(net)(x), evaluation_twin(net)(x)), net.training
        (True, True)
    """
    tree = list(module.modules())
    if not any(part.training for part in tree):
        return module
    return _Twins(tree).of(module)


class _Twins:
    """The stand-ins of a tree of modules, each made once."""

    def __init__(self, tree: list[nn.Module]) -> None:
        self.tree = {id(module) for module in tree}
        self.made: dict[int, nn.Module] = {}
        # What is compiled has loaded the compiler; nothing else needs it.
        self.compiled = getattr(sys.modules.get("torch._dynamo"), "OptimizedModule", ())

    def of(self, module: nn.Module) -> nn.Module:
        if id(module) not in self.made:
            self._make(module)
        return self.made[id(module)]

    def _make(self, module: nn.Module) -> None:
        key = id(module)
        if isinstance(module, torch.jit.ScriptModule):
            self.made[key] = copy.deepcopy(module).eval()
            return
        if isinstance(module, self.compiled):
            self.made[key] = module.dynamo_ctx(self.of(module._orig_mod))
            return
        twin = self.made[key] = object.__new__(type(module))
        state = dict(module.__dict__)
        object.__setattr__(twin, "__dict__", state)
        state["training"] = False
        state["_modules"] = {
            name: child if child is None else self.of(child)
            for name, child in dict(module._modules).items()
        }
        compiled = state.pop("_compiled_call_impl", None)
        for name, value in state.items():
            if type(value) not in _PLAIN and name not in _BASE:
                state[name] = self._value(value)
        if compiled is not None:
            state["_compiled_call_impl"] = _compiled_again(compiled, twin._call_impl)

    def _value(self, value: Any, depth: int = 0) -> Any:
        """`value`, or if it refers to modules of the tree, the same with their stand-ins."""
        if isinstance(value, nn.Module):
            return self.of(value) if id(value) in self.tree else value
        kind = type(value)
        if kind in _REBUILD and depth < _DEPTH:
            if kind is tuple and all(type(part) in _PLAIN for part in value):
                return value  # most of all attributes: a convolution has five
            parts, rebuild = _REBUILD[kind](value)
            new = [self._value(part, depth + 1) for part in parts]
            if any(a is not b for a, b in zip(new, parts, strict=True)):
                return rebuild(new)
        return value


Parts = tuple[list[Any], Callable[[list[Any]], Any]]


def _of_dict(value: dict) -> Parts:
    count, kind = len(value), type(value)
    return [*value.keys(), *value.values()], lambda new: kind(
        zip(new[:count], new[count:], strict=True)
    )


def _of_method(value: types.MethodType) -> Parts:
    return [value.__self__], lambda new: types.MethodType(value.__func__, *new)


def _of_partial(value: functools.partial) -> Parts:
    names = list(value.keywords)
    parts = [value.func, *value.args, *value.keywords.values()]
    first_keyword = 1 + len(value.args)
    return parts, lambda new: functools.partial(
        *new[:first_keyword], **dict(zip(names, new[first_keyword:], strict=True))
    )


def _of_function(value: types.FunctionType) -> Parts:
    """What the function encloses; variables that it shares with others stay shared."""
    cells = [cell for cell in value.__closure__ or () if _is_filled(cell)]

    def rebuild(new: list[Any]) -> types.FunctionType:
        changed = {
            cell: types.CellType(content)
            for cell, content in zip(map(id, cells), new, strict=True)
            if content is not _contents[cell]
        }
        closure = tuple(changed.get(id(cell), cell) for cell in value.__closure__)
        made = types.FunctionType(
            value.__code__, value.__globals__, value.__name__, value.__defaults__, closure
        )
        made.__kwdefaults__ = value.__kwdefaults__
        return made

    _contents = {id(cell): cell.cell_contents for cell in cells}
    return list(_contents.values()), rebuild


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


# kind of attribute -> its parts, and how it is made of others
_REBUILD: dict[type, Callable[[Any], Parts]] = {
    **{kind: lambda value: (list(value), type(value)) for kind in (list, tuple, set, frozenset)},
    dict: _of_dict,
    types.MethodType: _of_method,
    functools.partial: _of_partial,
    types.FunctionType: _of_function,
}


def _compiled_again(compiled: Callable[..., Any], call: Callable[..., Any]) -> Any:
    """`call`, compiled as nn.Module.compile compiled the original's; None where that is hidden."""
    from torch._dynamo.eval_frame import _TorchDynamoContext

    for cell in compiled.__closure__ or ():
        if _is_filled(cell) and isinstance(cell.cell_contents, _TorchDynamoContext):
            return cell.cell_contents(call)
    return None
