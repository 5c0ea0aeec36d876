"""Requests to emulated kernels and their results, as files of bytes (exchange.h)."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import check_op
from torch import Tensor

from .toolchain import run

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Failed(AssertionError):
    """The emulated program ended with an error: what a sanitizer or the emulation reported."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How the maps of a problem are stored, and how the device looks: kernels divide their work
    among its `multiprocessors`, and `misalign` elements off a 16-byte boundary rule out wide
    accesses.
    """

    channels_last: bool = False
    dtype: torch.dtype = torch.float32
    multiprocessors: int = 1
    misalign: int = 0

    def header(self, backward: bool, *values: int) -> bytes:
        """Start of a request: what every one says, then `values`."""
        form = (DTYPES.index(self.dtype), backward, self.channels_last)
        return fields(*form, self.multiprocessors, self.misalign, *values)

    def describe(self, *words: str | Sequence[int]) -> str:
        """A name for a test of this problem."""
        layout = "channels_last" if self.channels_last else "contiguous"
        shown = [w if isinstance(w, str) else "x".join(map(str, w)) for w in words]
        device = (f"sm{self.multiprocessors}", f"off{self.misalign}")
        return "_".join([str(self.dtype)[6:], layout, *shown, *device])


class Result:
    """What a program wrote, taken tensor by tensor."""

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.offset = 0

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        if math.prod(shape) == 0:
            return torch.empty(*shape, dtype=dtype)
        flat = torch.frombuffer(self.data, dtype=dtype, count=math.prod(shape), offset=self.offset)
        self.offset += flat.numel() * dtype.itemsize
        return flat.view(*shape)

    def take_map(self, shape: Sequence[int], dtype: torch.dtype, channels_last: bool) -> Tensor:
        """A map `[B, C, H, W]` in its layout."""
        if not channels_last:
            return self.take(shape, dtype)
        batch, channels, height, width = shape
        return self.take((batch, height, width, channels), dtype).permute(0, 3, 1, 2)


def fields(*values: int) -> bytes:
    """Values of a request, 64 bits each."""
    return struct.pack(f"<{len(values)}q", *values)


def to_bytes(x: Tensor) -> bytes:
    return x.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def map_to_bytes(x: Tensor, channels_last: bool) -> bytes:
    return to_bytes(x.permute(0, 2, 3, 1) if channels_last else x)


def exchange(program: Path, folder: Path, request: bytes, **options: str) -> Result:
    """The answer of `program`; `options` are those of `toolchain.run`.

    Raises:
        Failed: the kernels did something they must not.
    """
    (folder / "request").write_bytes(request)
    done = run(program, folder / "request", folder / "result", **options)
    if done.returncode != 0:
        raise Failed(f"exit status {done.returncode}\n{done.stderr}")
    return Result(bytearray((folder / "result").read_bytes()))


def emulated(
    forward: Callable[..., Tensor | tuple[Tensor, ...]],
    backward: Callable[..., tuple[Tensor, ...]],
    *problem: Any,
    **options: str,
) -> Callable[..., Tensor]:
    """A function of its inputs as the kernels compute it, with their gradient.

    Args:
        forward: gives the output, or that and what `backward` gets after the inputs.
        backward: gives the gradients of the inputs.
        problem: program, folder and problem, first arguments of both.
        options: of `toolchain.run`.
    """

    class Emulated(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Tensor:
            found = forward(*problem, inputs, **options)
            out, *statistics = found if isinstance(found, tuple) else (found,)
            ctx.save_for_backward(*inputs, *statistics)
            ctx.inputs = len(inputs)
            return out

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
            saved, count = ctx.saved_tensors, ctx.inputs
            return backward(*problem, grad, saved[:count], *saved[count:], **options)

    return Emulated.apply


def checker(
    forward: Callable[..., Tensor | tuple[Tensor, ...]],
    backward: Callable[..., tuple[Tensor, ...]],
    plain: Callable[..., Tensor],
    make_inputs: Callable[..., Sequence[Tensor]],
) -> Callable[..., None]:
    """Makes the check that an emulated op agrees with the reference.

    Args:
        forward: as for `emulated`.
        backward: as for `emulated`.
        plain: the same function in PyTorch, of a problem and its inputs.
        make_inputs: inputs of a problem.
    """

    def check(
        program: Path,
        folder: Path,
        problem: Form,
        inputs: Sequence[Tensor] | None = None,
        **options: str,
    ) -> None:
        """Output and gradients of `problem` agree with the reference."""
        op = emulated(forward, backward, program, folder, problem, **options)
        check_op(op, partial(plain, problem), make_inputs(problem) if inputs is None else inputs)

    return check
