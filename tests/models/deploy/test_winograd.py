"""Winograd's convolution in the C++ library, and how graphs come to call it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from convolution_graphs import convolutions
from torch import Tensor, nn
from torch.nn.functional import conv2d

from attnops.models import SegmentationModel, deploy
from attnops.models.deploy.convolutions import packing
from attnops.models.deploy.convolutions.packing import PackedConvolutions
from attnops.models.deploy.convolutions.winograd import (
    has_winograd,
    in_panels,
    share_of_products,
    winograd_op,
)
from attnops.nn import SqueezeAttention

pytestmark = pytest.mark.skipif(
    not has_winograd(torch.float32), reason="the CPU library is not built"
)

DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if has_winograd(dtype)]
# B, C, O, groups, H, W, dilation: sides odd, even, shorter than the dilation; outputs past a panel
SHAPES = (
    (1, 16, 48, 1, 5, 7, 1),
    (2, 32, 50, 2, 13, 8, 2),
    (1, 64, 96, 1, 9, 17, 4),
    (2, 48, 34, 1, 1, 3, 1),
    (3, 48, 150, 3, 4, 1, 6),
    (1, 544, 150, 1, 6, 11, 1),
)


@pytest.fixture
def without_tiles(monkeypatch):
    """As on a processor without AMX."""
    monkeypatch.setattr(packing, "has_tiles", lambda dtype: False)


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A map, channels_last, weights and a bias."""
    batch, channels, outputs, groups, height, width, _ = shape
    x = torch.randn(batch, height, width, channels).permute(0, 3, 1, 2).to(dtype)
    weight = torch.randn(outputs, channels // groups, 3, 3) * (groups / (9 * channels)) ** 0.5
    weight = weight.to(dtype)
    return x, weight, torch.randn(outputs)


def check(found: Tensor, plain: Tensor, exact: Tensor) -> None:
    """At most twice the error of PyTorch's own.

    Three times in bfloat16, where PyTorch rounds the result alone, and this the 16 parts too.
    """
    assert found.dtype == plain.dtype and found.shape == plain.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    factor = 2 if found.dtype == torch.float32 else 3
    assert (found - exact).norm() <= factor * (plain - exact).norm() + 1e-7 * exact.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_convolution(shape, dtype):
    x, weight, bias = drawn(shape, dtype)
    outputs, groups, dilation = shape[2], shape[3], shape[6]
    where = {"padding": dilation, "dilation": dilation, "groups": groups}
    for shift, relu in ((bias, True), (None, False)):
        found = winograd_op()(x, in_panels(weight, groups), shift, outputs, groups, dilation, relu)
        rough = None if shift is None else shift.to(dtype)
        wide = None if shift is None else shift.double()
        plain = conv2d(x, weight, rough, **where)
        exact = conv2d(x.double(), weight.double(), wide, **where)
        check(found, plain.relu() if relu else plain, exact.relu() if relu else exact)


def test_threads_and_runs_change_nothing():
    """Runs are cut by the number of threads; what is more than one run, too."""
    x, weight, bias = drawn((2, 32, 40, 1, 33, 35, 2), torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(winograd_op()(x, in_panels(weight), bias, 40, 1, 2, True))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    exact = conv2d(x.double(), weight.double(), bias.double(), padding=2, dilation=2).relu()
    assert (results[0] - exact).norm() <= 1e-6 * exact.norm()


def test_a_value_that_is_no_number_stays_in_its_neighbourhood():
    x, weight, bias = drawn((1, 16, 16, 1, 12, 12, 1), torch.float32)
    x[0, 3, 5, 6] = float("nan")
    found = winograd_op()(x, in_panels(weight), bias, 16, 1, 1, True)[0, 0].isnan()
    expected = conv2d(x, weight, bias, padding=1).relu()[0, 0].isnan()
    assert found[expected].all(), "ReLU keeps it"
    assert not found[:, :4].any() and not found[:, 10:].any() and not found[:2].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 24, 4, 4)}, "C a multiple of 16"),
        ({"x": torch.zeros(1, 32, 4, 4)}, "contiguous channels"),
        ({"x": torch.zeros(1, 4, 4, 32).permute(0, 3, 1, 2).double()}, "float32, or bfloat16"),
        ({"weight": torch.zeros(3)}, "in panels"),
    ],
)
def test_what_it_cannot_take_is_refused(change, message):
    x, weight, _ = drawn((1, 32, 16, 1, 4, 4, 1), torch.float32)
    given = {"x": x, "weight": in_panels(weight)} | change
    with pytest.raises(RuntimeError, match=message):
        winograd_op()(given["x"], given["weight"], None, 16, 1, 1, False)


def test_the_compiler_knows_what_comes_out():
    x, weight, bias = drawn((2, 32, 50, 1, 5, 8, 2), torch.float32)
    arguments = (x, in_panels(weight), bias, 50, 1, 2, True)
    torch.library.opcheck(winograd_op(), arguments, test_utils=("test_schema", "test_faketensor"))


def test_far_neighbours_leave_tiles_empty():
    """16 products for four results of nine; of grids of two rows a direct one has four of six."""
    assert share_of_products((64, 64), 1) == pytest.approx(4 / 9, rel=0.03)
    assert share_of_products((64, 64), 32) == pytest.approx(1.0)
    assert share_of_products((65,), 36) == pytest.approx(4 * 36 / (65 + 2 * 29))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN")
@pytest.mark.parametrize("dtype", DTYPES)
def test_graphs_call_it_where_it_is_defined(dtype, without_tiles):
    """Nine convolutions, of which three can: padded as they are dilated, of stride 1, near."""
    options = (
        (nn.Conv2d(64, 80, 3, padding=2, dilation=2), True),
        (nn.Conv2d(80, 64, 3, padding=1), False),
        (nn.Conv2d(64, 64, 3, padding=1, stride=2), True),
        (nn.Conv2d(64, 128, 3, padding=2), True),
        (nn.Conv2d(128, 128, 3, padding=1, groups=2), True),
        (nn.Conv2d(128, 128, 3, padding=1, groups=4), True),
        (nn.Conv2d(128, 64, 5, padding=1), True),
        (nn.Conv2d(64, 64, 3, padding=31, dilation=31), True),
        (nn.Conv2d(64, 16, 3, padding=1), True),
    )
    module = convolutions(*options, dtype=dtype)
    x = torch.randn(1, 64, 9, 11, dtype=dtype).to(memory_format=torch.channels_last)
    before = module(x)
    PackedConvolutions(False)(module.graph)
    assert not [node for node in module.graph.nodes if node.target is winograd_op()]
    module = convolutions(*options, dtype=dtype)
    PackedConvolutions(True)(module.graph)
    module.recompile()
    ours = [node for node in module.graph.nodes if node.target is winograd_op()]
    found = [node.args[3:] for node in ours]
    assert found == [(80, 1, 2, True), (64, 1, 1, False), (128, 2, 1, True)]
    relus = [n for n in module.graph.nodes if n.target is torch.ops.aten.relu.default]
    assert len(relus) == len(options) - 3
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    assert (module(x) - before).norm() <= tolerance * before.norm()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN")
@pytest.mark.parametrize("before", [torch.ops.aten.tanh.default, None], ids=["tanh", "input"])
def test_maps_of_any_format_are_brought_into_channels_last(before, without_tiles):
    """What pooling and concatenation write is in a format of the compiler's choice."""
    module = convolutions((nn.Conv2d(64, 64, 3, padding=1), True), dtype=torch.float32)
    if before is not None:
        (x, *_) = module.graph.nodes
        with module.graph.inserting_after(x):
            node = module.graph.call_function(before, (x,))
        x.replace_all_uses_with(node, lambda user: user is not node)
        module.recompile()
    x = torch.randn(1, 64, 9, 11)
    wanted = module(x.to(memory_format=torch.channels_last))
    PackedConvolutions(True)(module.graph)
    module.recompile()
    assert (module(x) - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN")
def test_the_compiler_is_held_to_strides_of_this_map(without_tiles):
    """Not to those that the ReLU had taken, of another map, before it became a part of the op."""
    module = convolutions((nn.Conv2d(64, 80, 3, padding=1), True), dtype=torch.float32)
    (relu,) = module.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    relu.meta["eager_input_vals"] = ((torch.empty(1, 80, 9, 11),), {})
    PackedConvolutions(True)(module.graph)
    (found,) = module.graph.find_nodes(op="call_function", target=winograd_op())
    values, named = found.meta["eager_input_vals"]
    assert len(values) == len(found.args) and not named
    assert values[0].shape == (1, 64, 9, 11) and values[0].stride() == (64 * 99, 1, 64 * 11, 64)


@pytest.mark.slow
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN")
def test_pooled_maps_compile():
    """They come out of their reduction in any format."""
    network = Squeezing().eval()
    ready = deploy(network, compile=True, keep_memory=False)
    images = torch.randn(2, 3, 65, 96)
    expected = network(images)["out"]
    assert (ready.logits(images) - expected).abs().max() <= 1e-4 * expected.abs().max()


class Squeezing(SegmentationModel):
    """A stem and SANet's module, whose 3x3 convolutions suit Winograd's algorithm."""

    smallest_side = 32

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 512, 3, stride=16, padding=1)
        self.head = SqueezeAttention(512, 5)

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.head(torch.relu(self.stem(images)))}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN")
def test_convolutions_of_one_weight_share_its_panels(without_tiles):
    conv = nn.Conv2d(64, 64, 3, padding=1)
    module = convolutions((conv, True), (conv, True), dtype=torch.float32)
    first, second = module.graph.find_nodes(
        op="call_function", target=torch.ops.mkldnn._convolution_pointwise.default
    )
    second.args = (second.args[0], *first.args[1:3], *second.args[3:])
    x = torch.randn(1, 64, 9, 11).to(memory_format=torch.channels_last)
    before = module(x)
    PackedConvolutions(True)(module.graph)
    module.recompile()
    ours = [node for node in module.graph.nodes if node.target is winograd_op()]
    assert len(ours) == 2 and ours[0].args[1:3] == ours[1].args[1:3]
    assert (module(x) - before).norm() <= 1e-5 * before.norm()


@pytest.mark.parametrize("isa", ["avx2", pytest.param("baseline", marks=pytest.mark.slow)])
def test_older_processors(isa):
    tests = ["-k", "it_is_the_convolution or threads_and_runs", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *tests, __file__],
        env={**os.environ, "ATTNOPS_ISA": isa, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:]
