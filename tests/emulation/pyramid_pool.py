"""Sends pyramid_pool problems to the emulated CUDA kernels (pyramid_pool_driver.cpp)."""

from __future__ import annotations

import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .toolchain import run

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Problem:
    """A pooling problem and how the device looks: few multiprocessors make the kernels share
    planes less, and `misalign` elements off a 16-byte boundary rule out wide accesses.
    """

    shape: tuple[int, int, int, int]
    sizes: tuple[int, ...] = (1, 3, 6, 8)
    use_max: bool = False
    channels_last: bool = False
    dtype: torch.dtype = torch.float32
    multiprocessors: int = 4
    misalign: int = 0

    @property
    def cells(self) -> int:
        return sum(n * n for n in self.sizes)

    def header(self, backward: bool) -> bytes:
        fields = (
            *(DTYPES.index(self.dtype), backward, self.use_max, self.channels_last, *self.shape),
            *(self.multiprocessors, self.misalign, len(self.sizes), *self.sizes),
        )
        return struct.pack(f"<{len(fields)}q", *fields)


class Failed(AssertionError):
    """The emulated program ended with an error: what a sanitizer or the emulation reported."""


def forward(
    program: Path, folder: Path, problem: Problem, x: Tensor, **options: str
) -> tuple[Tensor, Tensor | None]:
    """out `[B, C, S]`, and argmax `[B, C, S]` for max.

    Raises:
        Failed: the kernels did something they must not.
    """
    stored = x.permute(0, 2, 3, 1) if problem.channels_last else x
    result = _exchange(program, folder, problem.header(False) + _bytes(stored), **options)
    shape = (*problem.shape[:2], problem.cells)
    split = shape[0] * shape[1] * shape[2] * x.element_size()
    out = torch.frombuffer(result[:split], dtype=x.dtype).view(shape)
    if not problem.use_max:
        return out, None
    return out, torch.frombuffer(result[split:], dtype=torch.int32).view(shape)


def backward(
    program: Path,
    folder: Path,
    problem: Problem,
    grad: Tensor,
    argmax: Tensor | None,
    **options: str,
) -> Tensor:
    """grad_x `[B, C, H, W]`.

    Raises:
        Failed: the kernels did something they must not.
    """
    data = _bytes(grad) + (b"" if argmax is None else _bytes(argmax))
    result = _exchange(program, folder, problem.header(True) + data, **options)
    flat = torch.frombuffer(result, dtype=grad.dtype)
    batch, channels, height, width = problem.shape
    if problem.channels_last:
        return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(problem.shape)


def _bytes(x: Tensor) -> bytes:
    return x.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _exchange(program: Path, folder: Path, request: bytes, **options: str) -> bytearray:
    (folder / "request").write_bytes(request)
    done: subprocess.CompletedProcess[str] = run(
        program, folder / "request", folder / "result", **options
    )
    if done.returncode != 0:
        raise Failed(f"exit status {done.returncode}\n{done.stderr}")
    return bytearray((folder / "result").read_bytes())
