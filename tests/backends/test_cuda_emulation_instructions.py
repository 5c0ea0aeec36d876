"""Emulated tensor-core instructions, asynchronous copies and grid barriers against PTX's tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from emulation.exchange import Failed, exchange, fields, to_bytes
from emulation.toolchain import build
from torch import Tensor

MMA, LOAD, COPY, PRODUCT, GRID = range(5)
LANES = range(32)
ORDERS = ("forward", "reverse", "11")


@pytest.fixture(scope="module")
def program() -> Path:
    return build("instructions_driver.cpp", "address")


def run(
    program: Path,
    folder: Path,
    kernel: int,
    variant: int,
    *inputs: Tensor,
    fault: int = 0,
    order: str = "forward",
) -> bytearray:
    request = b"".join([fields(kernel, variant, fault), *map(to_bytes, inputs)])
    return exchange(program, folder, request, order=order).data


# Which element (row, column) is register element i of a lane: PTX ISA, "Matrix Fragments for
# mma.m16n8k16 with floating point type" and "... for mma.m16n8k8".


def half_a(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    column = thread * 2 + (i & 1) if i < 4 else thread * 2 + (i & 1) + 8
    return row, column


def half_b(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    row = thread * 2 + (i & 1) if i < 2 else thread * 2 + (i & 1) + 8
    return row, group


def tf32_a(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    row = group if i in (0, 2) else group + 8
    return row, thread if i in (0, 1) else thread + 4


def tf32_b(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    return (thread if i == 0 else thread + 4), group


def result(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    return (group if i < 2 else group + 8), thread * 2 + (i & 1)


def fragments(matrix: Tensor, where, count: int) -> Tensor:
    """`[32, count]`: what every lane holds of `matrix`."""
    return torch.stack([torch.stack([matrix[where(k, i)] for i in range(count)]) for k in LANES])


def assemble(held: Tensor) -> Tensor:
    """c `[16, 8]` of what the lanes hold."""
    c = torch.full((16, 8), torch.nan)
    for lane in LANES:
        for i in range(4):
            c[result(lane, i)] = held[lane, i]
    return c


@pytest.mark.parametrize(
    ("variant", "dtype", "depth", "error"),
    [
        (0, torch.float16, 16, 2.0**-21),
        (1, torch.bfloat16, 16, 2.0**-21),
        (2, torch.float32, 8, 2.0**-21),
        (3, torch.float32, 8, 2.0**-19),
        (4, torch.float32, 8, 2.0**-19),
    ],
    ids=["half", "bfloat16", "tf32", "3xtf32", "3xtf32 finite"],
)
@pytest.mark.parametrize("order", ORDERS)
def test_products_of_fragments(
    program: Path,
    tmp_path: Path,
    variant: int,
    dtype: torch.dtype,
    depth: int,
    error: float,
    order: str,
) -> None:
    a, b, c = torch.randn(16, depth), torch.randn(depth, 8), torch.randn(16, 8)
    a, b = a.to(dtype), b.to(dtype)
    if variant == 2:  # exact in 10 bits
        a, b = a.bfloat16().float(), b.bfloat16().float()
    where = (half_a, half_b) if depth == 16 else (tf32_a, tf32_b)
    held_a = fragments(a, where[0], depth // 2)
    held_b = fragments(b, where[1], depth // 4)
    held_c = fragments(c, result, 4)
    data = run(program, tmp_path, MMA, variant, held_a, held_b, held_c, order=order)
    found = assemble(torch.frombuffer(data, dtype=torch.float32).view(32, 4))
    exact = a.double() @ b.double() + c.double()
    size = a.double().abs() @ b.double().abs() + c.double().abs()
    assert ((found - exact).abs() <= error * size).all()
    if variant >= 3:  # one product of rounded numbers is not enough
        rounded = a.bfloat16().double() @ b.bfloat16().double() + c.double()
        assert not ((rounded - exact).abs() <= error * size).all()


def test_parts_of_numbers_that_are_not_finite(program: Path, tmp_path: Path) -> None:
    """They come out as in float, but for infinity times a number whose small part is 0."""
    a, b = torch.ones(16, 8), torch.full((8, 8), 1 / 3)
    a[0, 0], a[1, 1] = torch.inf, torch.nan
    held = (fragments(a, tf32_a, 4), fragments(b, tf32_b, 2), torch.zeros(32, 4))
    data = run(program, tmp_path, MMA, 3, *held)
    found = assemble(torch.frombuffer(data, dtype=torch.float32).view(32, 4))
    assert (found[1].isnan()).all() and found[2:].isfinite().all()
    assert not found[0].isfinite().any()


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_loads_of_matrices(program: Path, tmp_path: Path, count: int, transposed: bool) -> None:
    """Lane k of a matrix gets elements 2 (k % 4), +1 of row k / 4, or of column k / 4."""
    x = torch.randint(0, 2**15, (4, 8, 8), dtype=torch.int16)
    data = run(program, tmp_path, LOAD, 2 * count + transposed, x)
    found = torch.frombuffer(data, dtype=torch.int16).view(32, count, 2)
    for m in range(count):
        matrix = x[m].T if transposed else x[m]
        expected = torch.stack([matrix[k // 4, 2 * (k % 4) : 2 * (k % 4) + 2] for k in LANES])
        assert torch.equal(found[:, m], expected)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_copies_fill_the_rest_with_zero(program: Path, tmp_path: Path, size: int) -> None:
    x = torch.randint(1, 256, (32, size), dtype=torch.uint8)
    kept = torch.arange(32, dtype=torch.int32) % (size + 1)
    data = run(program, tmp_path, COPY, size, kept, x)
    found = torch.frombuffer(data, dtype=torch.uint8).view(32, size)
    assert torch.equal(found, x * (torch.arange(size) < kept[:, None]))


def check_product(program: Path, folder: Path, fault: int = 0, order: str = "forward") -> None:
    a, b = torch.randn(5, 16, 16).half(), torch.randn(5, 8, 16).half()
    data = run(program, folder, PRODUCT, 5, a, b, fault=fault, order=order)
    found = torch.frombuffer(data, dtype=torch.float32).view(16, 8)
    exact = (a.double() @ b.double().mT).sum(0)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


def check_grid(program: Path, folder: Path, fault: int = 0, order: str = "forward") -> None:
    blocks = 5
    x = torch.rand(blocks)
    data = run(program, folder, GRID, blocks, x, fault=fault, order=order)
    found = torch.frombuffer(data, dtype=torch.float32).view(blocks, 32)
    once = x + x.sum()
    torch.testing.assert_close(found, (x + once.sum())[:, None].expand(blocks, 32))


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
@pytest.mark.parametrize("check", [check_product, check_grid])
def test_pipelines_and_grids(check, sanitizer: str, tmp_path: Path) -> None:
    program = build("instructions_driver.cpp", sanitizer)
    for order in ORDERS:
        check(program, tmp_path, order=order)


@pytest.mark.parametrize(
    ("check", "fault", "report"),
    [
        (check_product, 1, ""),  # a stage read too early
        (check_product, 2, "data race"),  # ... before the copies of others are there
        (check_product, 3, "data race"),  # a stage filled while it is read
        (check_product, 4, ""),  # rows of the wrong lanes
        (check_product, 5, "returns while its copies are on their way"),
        (check_grid, 1, "data race"),  # a missing barrier of the grid
        (check_grid, 2, "waits for blocks that do not come"),
        (check_grid, 3, "waits for blocks that do not come"),  # a counter that does not start at 0
    ],
)
def test_faults_are_caught(check, fault: int, report: str, tmp_path: Path) -> None:
    """By values in one of two opposite orders, and races by ThreadSanitizer in any."""
    program = build("instructions_driver.cpp", "address")
    caught = False
    for order in ("forward", "reverse"):
        try:
            check(program, tmp_path, fault, order)
        except AssertionError:
            caught = True
    assert caught
    if report:
        with pytest.raises(Failed, match=report):
            check(build("instructions_driver.cpp", "thread"), tmp_path, fault)
