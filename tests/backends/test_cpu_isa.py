"""The C++ inner ops in every instruction set that was compiled, against float64 references.

The other tests run the newest instruction set of the processor. The choice is made once per
process, so each set gets a process of its own: this file, run as a script with ATTNOPS_ISA set.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from harness import DTYPES, assert_within_budget, error
from torch import Tensor

# Where attnops is, without importing it: the script loads nothing but the library it is given.
LIBRARY = Path(find_spec("attnops").origin).parent / "lib" / "libattnops_cpu.so"
ISAS = ("baseline", "avx2", "avx512")
UNAVAILABLE = 77  # exit status of the script: this processor lacks the instruction set

# Batch, channels, height, width: smaller than a vector, than the bins, not multiples of anything.
POOL_SHAPES = ((1, 1, 1, 1), (2, 3, 5, 7), (1, 37, 13, 18), (1, 17, 33, 50))
# Batch, key channels, value channels, positions, anchors: around tiles, panels and chunks.
ATTENTION_SHAPES = (
    (1, 1, 1, 1, 2),
    (2, 3, 5, 7, 3),
    (2, 16, 33, 97, 110),
    (1, 147, 3, 385, 13),
    (1, 9, 150, 200, 129),
)


def build_info(library: Path) -> dict[str, object]:
    function = ctypes.CDLL(str(library)).attnops_cpu_build_info
    function.restype = ctypes.c_char_p
    return json.loads(function())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("isa", ISAS)
def test_instruction_set(isa: str, threads: int) -> None:
    if not LIBRARY.exists():
        pytest.skip("the CPU library is not built")
    compiled = build_info(LIBRARY)["isas"]
    if isa not in compiled:
        pytest.skip(f"{isa} is not among what was compiled: {compiled}")
    result = subprocess.run(
        [sys.executable, __file__, str(LIBRARY), isa, str(threads)],
        env={**os.environ, "ATTNOPS_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    if result.returncode == UNAVAILABLE:
        pytest.skip(f"this processor has no {isa}")
    assert result.returncode == 0, result.stdout + result.stderr


def channels_inner(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def pool(x: Tensor, sizes: tuple[int, ...], use_max: bool) -> tuple[Tensor, Tensor]:
    """Pyramid and, for use_max, the positions of the maxima, from PyTorch's pooling."""
    if not use_max:
        return torch.cat([F.adaptive_avg_pool2d(x, n).flatten(2) for n in sizes], 2), x.new_empty(0)
    levels = [F.adaptive_max_pool2d(x, n, return_indices=True) for n in sizes]
    values, positions = (torch.cat([y.flatten(2) for y in z], 2) for z in zip(*levels, strict=True))
    return values, positions


def check_pool(dtype: torch.dtype, shape: tuple[int, ...], use_max: bool, inner: bool) -> None:
    ops, sizes = torch.ops.attnops_cpu, (1, 3, 6, 8)
    x = torch.randn(shape).to(dtype)
    if use_max:
        x = x.mul(2).round()  # with ties
    grad = torch.randn(*shape[:2], sum(n * n for n in sizes)).to(dtype)
    results = []
    for kind in (torch.float64, dtype):
        leaf = x.to(kind).requires_grad_()
        out, positions = pool(leaf, sizes, use_max)
        results.append((out.detach(), *torch.autograd.grad(out, leaf, grad.to(kind))))
    out, argmax = ops.pyramid_pool(channels_inner(x) if inner else x, sizes, use_max)
    grad_x = ops.pyramid_pool_backward(grad, argmax, *shape[2:], sizes, use_max, inner)
    for i, (name, actual) in enumerate((("out", out), ("grad_x", grad_x))):
        oracle, eager = results[0][i], error(results[1][i], results[0][i])
        assert_within_budget(actual, oracle, eager, 2 + i, f"pool {name} {dtype} {shape} {inner}")
    if use_max:
        assert torch.equal(argmax.long(), positions), f"argmax {dtype} {shape} {inner}"


def attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    scores = scale * query.transpose(1, 2) @ key + bias[:, None]
    return value @ scores.softmax(2).transpose(1, 2), scores.logsumexp(2)


def check_attention(dtype: torch.dtype, shape: tuple[int, ...], inner: bool) -> None:
    ops = torch.ops.attnops_cpu
    batch, key_channels, value_channels, positions, anchors = shape
    scale = key_channels**-0.5
    inputs = [
        torch.randn(size).to(dtype)
        for size in (
            (batch, key_channels, positions),
            (batch, key_channels, anchors),
            (batch, value_channels, anchors),
            (batch, anchors),
        )
    ]
    grad = torch.randn(batch, value_channels, positions).to(dtype)
    results = []
    for kind in (torch.float64, dtype):
        leaves = [x.to(kind).requires_grad_() for x in inputs]
        out, lse = attention(*leaves, scale)
        grads = torch.autograd.grad(out, leaves, grad.to(kind))
        results.append((out.detach(), lse.detach(), *grads))
    if inner:
        inputs[0], grad = channels_inner(inputs[0]), channels_inner(grad)
    out, lse = ops.anchor_attention(*inputs, scale)
    grads = ops.anchor_attention_backward(grad, *inputs, lse, scale)
    names = ("out", "lse", "dquery", "dkey", "dvalue", "dbias")
    for i, (name, actual) in enumerate(zip(names, (out, lse, *grads), strict=True)):
        oracle, eager = results[0][i], error(results[1][i], results[0][i])
        factor = 2 if i < 2 else 3
        assert_within_budget(actual, oracle, eager, factor, f"{name} {dtype} {shape} {inner}")


def main(library: str, isa: str, threads: str) -> int:
    torch.ops.load_library(library)
    if build_info(Path(library))["isa"] != isa:
        return UNAVAILABLE
    torch.set_num_threads(int(threads))
    torch.use_deterministic_algorithms(True)  # fills new outputs with NaN
    torch.manual_seed(0)
    for dtype in DTYPES:
        for inner in (False, True):
            for shape in POOL_SHAPES:
                for use_max in (False, True):
                    check_pool(dtype, shape, use_max, inner)
            for shape in ATTENTION_SHAPES:
                check_attention(dtype, shape, inner)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
