"""SegNeXt's feed-forward network as one op of the C++ library, against PyTorch in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_calls import CALLS
from small_network import small_network
from torch import Tensor
from torch.nn.functional import gelu

import attnops
from attnops.models import deploy
from attnops.models.deploy.convolutions.tiles import has_tiles
from attnops.models.deploy.feed_forward import ResidualFeedForward, packed
from attnops.models.deploy.inner_ops import direct_calls, has_library
from attnops.nn.mscan import ConvolutionalFeedForward

pytestmark = pytest.mark.skipif(not has_library(), reason="the CPU library is not built")

DTYPES = (torch.float32, torch.bfloat16)
# B, C, hidden channels, H, W: one pixel, lines, channels that fill no vector, maps in strips of
# columns, in several rows at a time. Channels that are multiples of 32 and that are not, which AMX
# takes or leaves, in widths that fill no tile; products so deep that sums leave while others are
# made; weights so large that more pixels are taken at a time, and in strips.
SHAPES = (
    (3, 5, 20, 1, 1),
    (1, 1, 8, 4, 5),
    (1, 3, 17, 30, 1),
    (2, 7, 33, 5, 2),
    (2, 16, 64, 7, 13),
    (1, 20, 300, 2, 400),
    (2, 40, 640, 9, 9),
    (2, 32, 64, 1, 1),
    (2, 32, 96, 5, 37),
    (1, 64, 48, 3, 5),
    (1, 48, 128, 4, 33),
    (2, 96, 300, 5, 18),
    (1, 20, 272, 6, 47),
    (1, 320, 1056, 4, 70),
)


def parts_of(channels: int, hidden: int) -> ConvolutionalFeedForward:
    return ConvolutionalFeedForward(channels, hidden).requires_grad_(False)


def fused(parts: ConvolutionalFeedForward, x: Tensor, dtype: torch.dtype) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    return torch.ops.attnops_cpu.packed_feed_forward(x, *packed(parts, dtype).values())


def plain(parts: ConvolutionalFeedForward, x: Tensor) -> Tensor:
    """Without any op of attnops."""
    return x + parts.contract(gelu(parts.depthwise(parts.expand(x))))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_errs_as_little_as_pytorch(shape, dtype):
    batch, channels, hidden, height, width = shape
    parts, x = parts_of(channels, hidden), torch.randn(batch, channels, height, width)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        usual = plain(parts, x)
    found = fused(parts, x, dtype)
    exact = plain(parts.double(), x.double())
    assert found.is_contiguous(memory_format=torch.channels_last)
    budget = 2 * (usual - exact).abs().max() + 2e-7 * exact.abs().max()
    assert (found - exact).abs().max() <= budget


@pytest.mark.parametrize("channels", [16, 24, 32])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_the_same_for_all_threads(dtype, channels):
    """Few rows for each of them, too: then the hidden map is made as a whole."""
    parts, x = parts_of(channels, 96), torch.randn(2, channels, 11, 37)
    before = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 5, 9):
            torch.set_num_threads(count)
            found.append(fused(parts, x, dtype))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(other, found[0]) for other in found[1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gelus_of_large_and_small_numbers(dtype):
    """All three convolutions are the identity."""
    parts = parts_of(32, 32)
    for parameter in parts.parameters():
        parameter.zero_()
    for conv in (parts.expand, parts.contract):
        conv.weight.view(32, 32).fill_diagonal_(1)
    parts.depthwise.weight[:, :, 1, 1] = 1
    x = torch.linspace(-12, 12, 32 * 99).view(1, 32, 9, 11)
    x[0, 0, 0, :6] = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30])
    x = x.to(torch.bfloat16).float()
    found, exact = fused(parts, x, dtype) - x, gelu(x.double())
    budget = 1e-6 * (x.abs() + exact.abs())
    if dtype == torch.bfloat16:  # half a unit in the last place, and what short_gelu.h says
        budget += (2**-8 + 2**-10) * exact.abs() + 2.2e-5
    assert ((found - exact).abs() <= budget).all()


@pytest.mark.parametrize("channels", [16, 32])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_reaches_its_neighbours_only(dtype, channels):
    x = torch.randn(1, channels, 9, 12)
    x[0, 3, 0, 5] = torch.nan
    wanted = torch.zeros(9, 12, dtype=torch.bool)
    wanted[:2, 4:7] = True
    found = fused(parts_of(channels, 32), x, dtype).isnan()
    assert torch.equal(found[0], wanted.expand(channels, 9, 12))


def test_bad_input_is_refused():
    weights = packed(parts_of(16, 32), torch.float32)
    op = torch.ops.attnops_cpu.packed_feed_forward
    for x in (torch.randn(1, 16, 5, 6), torch.randn(1, 16, 5)):
        with pytest.raises(RuntimeError, match="expected x"):
            op(x, *weights.values())
    x = torch.randn(1, 32, 5, 6).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="32 channels"):
        op(x, *weights.values())
    with pytest.raises(RuntimeError, match="float32"):
        op(x.double(), *weights.values())


@pytest.mark.skipif(not has_tiles(torch.float32), reason="this processor has no AMX")
def test_weights_in_parts_are_of_whole_tiles_and_of_products_in_float32():
    """48 channels are no whole tiles: those stay floats."""
    assert packed(parts_of(48, 64), torch.float32)["expand"].dtype == torch.float32
    assert packed(parts_of(64, 48), torch.float32)["expand"].dtype == torch.float32
    weights = packed(parts_of(64, 96), torch.float32)
    assert weights["expand"].shape == (6, 3, 32, 16, 2)
    assert weights["contract"].shape == (4, 3, 48, 16, 2)
    x = torch.randn(1, 64, 5, 6).contiguous(memory_format=torch.channels_last)
    op = torch.ops.attnops_cpu.packed_feed_forward
    weights["expand"] = weights["expand"].float()
    with pytest.raises(RuntimeError, match="weights in"):
        op(x, *weights.values())


def laid_out(backend: str, dtype: str = "float32") -> tuple[Tensor, list[ResidualFeedForward]]:
    with attnops.use_backend(backend):
        ready = deploy(small_network(), dtype, compile=False, keep_memory=False)
        images = torch.linspace(-2, 2, 3 * 40 * 56).sin().view(1, 3, 40, 56)
        logits = ready.logits(images)
    kind = ResidualFeedForward
    return logits, [module for module in ready._maps.modules() if isinstance(module, kind)]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("bfloat16", 0.02)])
def test_is_used_where_the_library_is_wanted(dtype, tolerance):
    found, (one,) = laid_out("auto", dtype)
    wanted, (other,) = laid_out("reference")
    assert one.parts is None and other.parts is not None
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


OLDER = """
import torch, test_deploy_feed_forward as tests
torch.manual_seed(0)
for dtype in tests.DTYPES:
    tests.test_is_the_same_for_all_threads(dtype, 24)
    for shape in tests.SHAPES:
        tests.test_errs_as_little_as_pytorch(shape, dtype)
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_older_instruction_sets(isa):
    """avx512 leaves AMX out."""
    paths = [str(Path(__file__).parent), *sys.path]
    environment = {"ATTNOPS_ISA": isa, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-W", "ignore", "-c", OLDER]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_blocks_that_are_not_folded_call_the_library_too():
    tensors = CALLS["feed_forward"].tensors("channels_last")
    given = tensors[0], tensors[1:4], tensors[4:], [0, 1, 2]
    op = torch.ops.attnops.feed_forward.default
    out, trace = direct_calls(half=False)[op](*given)
    assert trace.numel() == 0
    torch.testing.assert_close(out, attnops.reference.feed_forward(*tensors))
    assert out.stride() == op(*given)[0].stride()
