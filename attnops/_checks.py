"""Argument checks of the public functions. Every message says what was expected and what was
given.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    fits = tensor.dim() == len(expected) and all(
        isinstance(want, str) or size == want
        for size, want in zip(tensor.shape, expected, strict=True)
    )
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


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in the autocast dtype where autocast is on for their device, else unchanged.

    As PyTorch's own rule for matrix products: float64 stays as it is.
    """
    device = next(t.device.type for t in tensors if isinstance(t, Tensor))
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype) if isinstance(t, Tensor) and t.dtype in FLOAT_DTYPES[:3] else t for t in tensors
    )


def check_pair(op: str, name: str, value: object) -> list[int]:
    """Two integers, from one for both or a pair.

    Raises:
        TypeError: it is neither.
    """
    pair = [value, value] if isinstance(value, int) else value
    if (
        not isinstance(pair, Sequence)
        or len(pair) != 2
        or any(isinstance(item, bool) or not isinstance(item, int) for item in pair)
    ):
        raise TypeError(f"{op}: {name} must be an integer or a pair of integers, got {value!r}")
    return list(pair)


def check_number(op: str, name: str, value: object) -> float:
    """`value` as a float.

    Raises:
        TypeError: not a number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    return float(value)


def check_flag(op: str, name: str, value: object) -> None:
    """`value` is true or false.

    Raises:
        TypeError: it is not a bool.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {value!r}")
