"""Requests to emulated kernels and their results, as files of bytes (exchange.h)."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .toolchain import run

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Failed(AssertionError):
    """The emulated program ended with an error: what a sanitizer or the emulation reported."""


class Result:
    """What a program wrote, taken tensor by tensor."""

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.offset = 0

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
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
