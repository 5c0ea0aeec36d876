"""Argument checks of the public functions. Every message says what was expected and what was
given.
"""

from __future__ import annotations

import functools
import numbers
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_tensors(op: str, **tensors: Tensor) -> None:
    """All are strided float tensors of one dtype on one device.

    Raises:
        TypeError: not a tensor, or a dtype that is not supported.
        ValueError: mixed dtypes or devices, or not strided.
    """
    first_name = first = None
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            if isinstance(tensor, torch.fx.Proxy):
                raise TypeError(
                    f"{op}: {name} has no shape to check in torch.fx.symbolic_trace. Use "
                    "torch.export, or a torch.fx.Tracer whose is_leaf_module accepts modules of "
                    "attnops"
                )
            raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in FLOAT_DTYPES:
            raise TypeError(
                f"{op}: {name} has dtype {tensor.dtype}; expected float32, float16, bfloat16 or "
                f"float64. Convert it, for example {name}.float()"
            )
        if tensor.layout != torch.strided:
            raise ValueError(f"{op}: {name} has layout {tensor.layout}; expected a dense tensor")
        if first is None:
            first_name, first = name, tensor
            continue
        if tensor.dtype != first.dtype:
            raise ValueError(
                f"{op}: {first_name} is {first.dtype} but {name} is {tensor.dtype}; expected one "
                "dtype. Convert one of them, or run under torch.autocast"
            )
        if tensor.device != first.device:
            raise ValueError(
                f"{op}: {first_name} is on {first.device} but {name} is on {tensor.device}; "
                "expected one device. Move one of them with .to()"
            )


def check_shape(op: str, name: str, tensor: Tensor, expected: Sequence[int | str]) -> None:
    """`tensor` has the dimensions `expected`; strings name free ones, for the message.

    Raises:
        ValueError: it has not.
    """
    fits = tensor.dim() == len(expected)
    if fits:
        for size, want in zip(tensor.shape, expected, strict=True):
            if size != want and not isinstance(want, str):
                fits = False
    if not fits:
        wanted = ", ".join(map(str, expected))
        given = ", ".join(map(str, tensor.shape))
        raise ValueError(f"{op}: {name} must be [{wanted}], got [{given}]")


def check_choice(op: str, name: str, value: object, choices: Sequence[str]) -> None:
    """`value` is one of `choices`.

    Raises:
        ValueError: it is not.
    """
    if value not in choices:
        expected = " or ".join(map(repr, choices))
        raise ValueError(f"{op}: {name} must be {expected}, got {value!r}")


def cast_and_check(
    op: str,
    tensors: Mapping[str, Any],
    optional: Mapping[str, Any] | None = None,
    autocast_to: torch.dtype | None = None,
) -> list[Any]:
    """The tensors of a call as its op gets them: in one dtype that is supported, on one device.

    Where autocast is on for their device they are cast as PyTorch casts those of matrix products:
    float64 stays as it is.

    Args:
        op: named in messages.
        tensors: by name.
        optional: others, which may be None.
        autocast_to: dtype under autocast; None: the one that autocast is on with.

    Raises:
        TypeError: not a tensor, or a dtype that is not supported.
        ValueError: mixed dtypes or devices, or not strided.
    """
    given = {**tensors, **(optional or {})}
    device = next((t.device.type for t in given.values() if isinstance(t, Tensor)), "meta")
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = autocast_to or torch.get_autocast_dtype(device)
        for name, tensor in given.items():
            if isinstance(tensor, Tensor) and tensor.dtype in FLOAT_DTYPES[:3]:
                given[name] = tensor.to(dtype)
    check_tensors(op, **{n: t for n, t in given.items() if n in tensors or t is not None})
    return list(given.values())


def _python_value(value: object) -> object:
    """What a scalar of numpy or an array or tensor without dimensions holds; others as they are."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return value


def python_numbers(value: Any) -> Any:
    """`value` with Python's numbers instead of numpy's and of 0-d tensors, in sequences as well."""
    if getattr(value, "ndim", None) == 1 and hasattr(value, "tolist"):
        return value.tolist()
    if type(value) in (tuple, list):
        return type(value)(python_numbers(item) for item in value)
    return _python_value(value)


def given_python_numbers(init: Callable[..., None]) -> Callable[..., None]:
    """Decorator of a constructor: its options arrive with Python's numbers."""

    @functools.wraps(init)
    def convert_and_call(self: Any, *args: Any, **options: Any) -> None:
        named = {name: python_numbers(value) for name, value in options.items()}
        init(self, *map(python_numbers, args), **named)

    return convert_and_call


def _as_integer(value: object) -> int | None:
    """`value` as an int, a symbolic one as it is; None if it is no integer. Flags are none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, torch.SymInt)):
        return value
    value = _python_value(value)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _as_list(values: object) -> list[object] | None:
    """The items of a sequence or one-dimensional array, None if it is neither."""
    if getattr(values, "ndim", None) == 1 and hasattr(values, "tolist"):
        return values.tolist()
    if isinstance(values, str) or not isinstance(values, Sequence):
        return None
    return list(values)


def check_integer(op: str, name: str, value: object, least: int | None = None) -> int:
    """`value` as an int: numpy's integers and whatever else has `__index__` count, bools do not.

    Raises:
        TypeError: not an integer.
        ValueError: below `least`.
    """
    found = _as_integer(value)
    if found is None:
        raise TypeError(f"{op}: {name} must be an integer, got {value!r}")
    if least is not None and found < least:
        wanted = "not be negative" if least == 0 else f"be at least {least}"
        raise ValueError(f"{op}: {name} must {wanted}, got {found}")
    return found


def check_integers(op: str, name: str, values: object, least: int | None = None) -> list[int]:
    """A sequence of integers as ints.

    Raises:
        TypeError: not a sequence of integers.
        ValueError: an integer below `least`.
    """
    items = _as_list(values)
    if items is None:
        raise TypeError(f"{op}: {name} must be a sequence of integers, got {values!r}")
    found = [_as_integer(item) for item in items]
    for item, n in zip(items, found, strict=True):
        if n is None:
            raise TypeError(f"{op}: {name} must be integers, got {item!r} in {tuple(items)}")
        if least is not None and n < least:
            raise ValueError(f"{op}: {name} must be at least {least}, got {n} in {tuple(found)}")
    return found


def check_pair(
    op: str, name: str, value: object, expected: str = "an integer or a pair of integers"
) -> list[int]:
    """Two integers, from one for both or a pair.

    Raises:
        TypeError: it is neither.
    """
    whole = _as_integer(value)
    pair = [whole, whole] if whole is not None else [_as_integer(n) for n in _as_list(value) or ()]
    if len(pair) != 2 or any(n is None for n in pair):
        raise TypeError(f"{op}: {name} must be {expected}, got {value!r}")
    return pair


def check_number(op: str, name: str, value: object, expected: str = "a number") -> float:
    """`value` as a float; a symbolic one stays symbolic.

    Raises:
        TypeError: not a real number.
    """
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (torch.SymInt, torch.SymFloat)):
        return torch.sym_float(value)
    found = _python_value(value)
    if isinstance(found, bool) or not isinstance(found, numbers.Real):
        raise TypeError(f"{op}: {name} must be {expected}, got {value!r}")
    return float(found)


def check_flag(op: str, name: str, value: object) -> bool:
    """`value` as a bool.

    Raises:
        TypeError: it is neither true nor false.
    """
    if not isinstance(value, bool):
        found = _python_value(value)
        if not isinstance(found, bool):
            raise TypeError(f"{op}: {name} must be True or False, got {value!r}")
        return found
    return value
