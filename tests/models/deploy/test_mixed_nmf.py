"""The factorisation of bfloat16 maps with factors in float32, against PyTorch in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_network import small_network
from torch import Tensor
from torch.library import opcheck
from torch.nn.functional import normalize

from attnops.models import deploy
from attnops.models.deploy import inner_ops
from attnops.models.deploy.convolutions.tiles import has_tiles
from attnops.models.deploy.inner_ops import has_library

pytestmark = pytest.mark.skipif(not has_library(), reason="the CPU library is not built")

# B, D, N, R: one position, odd channels, channels that fill tiles or not, positions that fill no
# tile or no pair, ranks that fill no vector or no tile, several shares.
SHAPES = (
    (1, 32, 1, 1),
    (1, 32, 193, 33),
    (1, 40, 50, 6),
    (1, 2, 1, 1),
    (1, 33, 50, 7),
    (3, 34, 33, 5),
    (1, 64, 97, 64),
    (3, 96, 47, 48),
    (1, 130, 191, 100),
    (2, 512, 95, 1),
    (2, 256, 1000, 16),
    (1, 256, 431, 64),
)
INV_T, EPS = 10.0, 1e-6


def factorised(x: Tensor, bases: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Eq. by eq., without any op of attnops."""
    coef = torch.softmax(INV_T * (x.mT @ bases), -1)
    for step in range(steps + 1):
        coef = coef * (x.mT @ bases) / (coef @ (bases.mT @ bases) + EPS)
        if step < steps:
            bases = bases * (x @ coef) / (bases @ (coef.mT @ coef) + EPS)
    return bases, coef


def inputs(shape: tuple[int, int, int, int], inner: bool) -> tuple[Tensor, Tensor]:
    batch, channels, positions, rank = shape
    x = torch.rand(batch, positions, channels).bfloat16().mT
    return x if inner else x.contiguous(), normalize(torch.rand(batch, channels, rank), dim=1)


@pytest.mark.parametrize("inner", [True, False], ids=["channels inner", "positions inner"])
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_errs_as_little_as_rounded_products(shape, steps, inner, threads):
    x, bases = inputs(shape, inner)
    found = torch.ops.attnops_cpu.mixed_nmf(x, bases, steps, INV_T, EPS)
    exact = factorised(x.double(), bases.double(), steps)
    for factor, wanted in zip(found, exact, strict=True):
        assert factor.dtype == torch.float32
        assert (factor - wanted).norm() <= 4e-3 * wanted.norm()
    product, wanted = found[0] @ found[1].mT, exact[0] @ exact[1].mT
    assert (product - wanted).norm() <= 2e-3 * wanted.norm()


@pytest.mark.parametrize("channels", [64, 66])
def test_reads_nothing_beyond_the_map(channels):
    """Positions and channels around the ones of a map, which stand in the same memory, are NaN."""
    around = torch.full((3, 99, channels), float("nan"), dtype=torch.bfloat16)
    around[1:2, :, :] = torch.rand(1, 99, channels).bfloat16()
    x, bases = around[1:2].mT, normalize(torch.rand(1, channels, 5), dim=1)
    found = torch.ops.attnops_cpu.mixed_nmf(x, bases, 2, INV_T, EPS)
    apart = torch.ops.attnops_cpu.mixed_nmf(x.mT.clone().mT, bases, 2, INV_T, EPS)
    assert all(torch.isfinite(factor).all() for factor in found)
    assert all(map(torch.equal, found, apart))


@pytest.mark.parametrize("shape", [(1, 64, 1, 1), (1, 64, 47, 33), (1, 66, 47, 33)], ids=str)
def test_takes_nothing_from_memory_that_it_did_not_write(shape):
    """Its own memory is that of a call before, where everything was NaN."""
    x, bases = inputs(shape, True)
    torch.ops.attnops_cpu.mixed_nmf(torch.full_like(x, float("nan")), bases, 2, INV_T, EPS)
    found = torch.ops.attnops_cpu.mixed_nmf(x, bases, 2, INV_T, EPS)
    assert all(torch.isfinite(factor).all() for factor in found)


@pytest.mark.parametrize("channels", [64, 66])
def test_nan_stays_at_its_position_without_an_update_of_the_bases(channels):
    x, bases = inputs((1, channels, 131, 9), True)
    x[0, 5, 70] = float("nan")
    _, coef = torch.ops.attnops_cpu.mixed_nmf(x, bases, 0, INV_T, EPS)
    at = torch.arange(131) == 70
    assert torch.isnan(coef[0, at]).all() and torch.isfinite(coef[0, ~at]).all()


def test_compilers_know_what_comes_out():
    inner_ops._mixed_nmf()  # tells them
    x, bases = inputs((2, 34, 33, 5), True)
    opcheck(torch.ops.attnops_cpu.mixed_nmf.default, (x, bases, 2, INV_T, EPS))


def test_same_in_every_run(threads):
    x, bases = inputs((1, 64, 700, 12), True)
    first, *others = (torch.ops.attnops_cpu.mixed_nmf(x, bases, 3, INV_T, EPS) for _ in range(4))
    for other in others:
        assert all(map(torch.equal, first, other))


def test_refuses_other_dtypes():
    x, bases = inputs((1, 8, 9, 3), True)
    for wrong in ((x.float(), bases), (x, bases.bfloat16())):
        with pytest.raises(RuntimeError, match=r"bfloat16 and bases in float32"):
            torch.ops.attnops_cpu.mixed_nmf(*wrong, 1, INV_T, EPS)


def in_a_process(isa: str, *arguments: str) -> str:
    """What Python prints on the instruction set."""
    folder = Path(__file__).parent
    path = os.pathsep.join([str(folder), str(folder.parents[1] / "support"), *sys.path])
    environment = os.environ | {"ATTNOPS_ISA": isa, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(not has_tiles(torch.bfloat16), reason="the rest of this file tests pairs")
def test_pairs_where_the_processor_has_tiles():
    chosen = "errs_as_little or nothing or nan or same_in_every_run"
    options = ["-q", "-p", "no:cacheprovider", "-k", chosen]
    assert " passed" in in_a_process("avx512", "-m", "pytest", *options, __file__)


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_other_instruction_sets(isa):
    """They multiply in float, and agree with float64 to its roundings."""
    code = (
        "import torch, test_mixed_nmf as t\n"
        "x, bases = t.inputs((2, 34, 133, 5), True)\n"
        "found = torch.ops.attnops_cpu.mixed_nmf(x, bases, 3, t.INV_T, t.EPS)\n"
        "exact = t.factorised(x.double(), bases.double(), 3)\n"
        "for a, b in zip(found, exact): assert (a - b).norm() <= 1e-5 * b.norm(), (a - b).norm()\n"
    )
    in_a_process(isa, "-c", code)


def test_deployments_in_bfloat16_take_it(monkeypatch):
    called = []
    op = torch.ops.attnops_cpu.mixed_nmf
    made = inner_ops._mixed_nmf()
    monkeypatch.setattr(inner_ops, "_mixed_nmf", lambda: called.append(op) or made)
    network = small_network()
    images = torch.randn(1, 3, 64, 80)
    ready = deploy(network, "bfloat16", compile=True, keep_memory=False)
    assert called
    with torch.no_grad():
        exact = network.double()(images.double())["out"]
    assert (ready.logits(images) - exact).norm() < 0.02 * exact.norm()
