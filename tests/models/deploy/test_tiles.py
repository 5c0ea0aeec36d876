"""Convolutions in tiles of AMX in the C++ library, and how graphs come to call them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from convolution_graphs import ONEDNN, append, convolutions
from torch import Tensor, nn
from torch.nn.functional import conv2d

from attnops.models.deploy.convolutions.packing import PackedConvolutions
from attnops.models.deploy.convolutions.tiles import has_tiles, in_tiles, tiled_op

HALF = torch.bfloat16
RELU, ADD = torch.ops.aten.relu.default, torch.ops.aten.add.Tensor

needs_tiles = pytest.mark.skipif(not has_tiles(HALF), reason="this processor has no AMX")

# B, C, O, H, W, side, dilation: channels and outputs that fill no tile; fewer positions than a
# step, or none past it; sides shorter than the dilation; terms that fill several blocks of weights
SHAPES = (
    (1, 32, 32, 1, 1, 1, 1),
    (1, 64, 64, 4, 8, 1, 1),
    (2, 64, 33, 5, 7, 1, 1),
    (3, 40, 70, 6, 5, 1, 1),
    (1, 32, 32, 1, 1, 3, 1),
    (2, 48, 40, 9, 7, 3, 2),
    (3, 64, 96, 2, 3, 3, 4),
    (2, 32, 40, 40, 9, 3, 16),
    (1, 64, 32, 33, 31, 3, 36),
    (2, 1000, 150, 6, 11, 3, 1),
    (1, 5000, 160, 3, 12, 1, 1),
)


def drawn(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A map, channels_last, weights, a bias and a residual."""
    batch, channels, outputs, height, width, side, _ = shape
    x = torch.randn(batch, height, width, channels).permute(0, 3, 1, 2).to(HALF)
    weight = torch.randn(outputs, channels, side, side) * (channels * side * side) ** -0.5
    residual = torch.randn(batch, height, width, outputs).permute(0, 3, 1, 2).to(HALF)
    return x, weight.to(HALF), torch.randn(outputs), residual


def check(found: Tensor, exact: Tensor) -> None:
    """Sums in float32 were rounded once."""
    assert found.dtype == HALF and found.shape == exact.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert ((found - exact).abs() <= 2**-8 * exact.abs() + 1e-5 * exact.abs().max()).all()


@needs_tiles
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("more", ["nothing", "bias", "residual", "all"])
def test_it_is_the_convolution(shape, more):
    x, weight, bias, residual = drawn(shape)
    outputs, side, dilation = shape[2], shape[5], shape[6]
    shift = bias if more in ("bias", "all") else None
    term = residual if more in ("residual", "all") else None
    relu = more == "all"
    tensors = (x, in_tiles(weight), shift, None, term, None, None)
    found = tiled_op()(*tensors, outputs, side, dilation, 1, int(relu), False)
    wide = None if shift is None else shift.double()
    padding = dilation * (side - 1) // 2
    exact = conv2d(x.double(), weight.double(), wide, padding=padding, dilation=dilation)
    exact = exact if term is None else exact + term.double()
    check(found, exact.relu() if relu else exact)


@needs_tiles
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((2, 128, 64, 9, 7, 3, 2), 2),
        ((1, 96, 96, 5, 33, 1, 1), 3),
        ((1, 2048, 320, 6, 11, 3, 1), 2),
    ],
)
def test_groups_have_their_own_channels(shape, groups):
    x, _, bias, residual = drawn(shape)
    _, channels, outputs, _, _, side, dilation = shape
    weight = (torch.randn(outputs, channels // groups, side, side) * 0.05).to(HALF)
    tensors = (x, in_tiles(weight), bias, None, residual, None, None)
    found = tiled_op()(*tensors, outputs, side, dilation, groups, 0, False)
    options = {"padding": dilation * (side - 1) // 2, "dilation": dilation, "groups": groups}
    exact = conv2d(x.double(), weight.double(), bias.double(), **options)
    check(found, exact + residual.double())


@needs_tiles
@pytest.mark.parametrize("dilation", [1, 2, 5])
def test_it_reads_nothing_that_it_did_not_write(dilation):
    """Of memory that held no numbers, where rows are laid out as they are needed."""
    x, weight, bias, _ = drawn((1, 640, 64, 19, 14, 3, dilation))
    for size in (1 << 22, 1 << 20, 1 << 18, 1 << 16) * 8:
        torch.full((size,), float("nan"), dtype=HALF)
    tensors = (x, in_tiles(weight), bias, None, None, None, None)
    found = tiled_op()(*tensors, 64, 3, dilation, 1, 0, False)
    options = {"padding": dilation, "dilation": dilation}
    check(found, conv2d(x.double(), weight.double(), bias.double(), **options))


@needs_tiles
@pytest.mark.parametrize("shape", [(2, 64, 160, 13, 11, 3, 2), (2, 64, 160, 13, 11, 1, 1)])
def test_threads_and_runs_change_nothing(shape):
    x, weight, bias, residual = drawn(shape)
    scale = torch.rand(shape[0], shape[1], 1, 1).to(HALF) if shape[5] == 1 else None
    tensors = (x, in_tiles(weight), bias, residual, residual, bias, scale)
    arguments = (*tensors, shape[2], shape[5], shape[6], 1, 2, False)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(tiled_op()(*arguments))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@needs_tiles
def test_a_value_that_is_no_number_stays_in_its_neighbourhood():
    x, weight, bias, _ = drawn((1, 40, 40, 12, 12, 3, 1))
    x[0, 3, 5, 6] = float("nan")
    tensors = (x, in_tiles(weight), bias, None, None, None, None)
    found = tiled_op()(*tensors, 40, 3, 1, 1, 1, False).isnan()
    expected = torch.zeros(1, 40, 12, 12, dtype=torch.bool)
    expected[:, :, 4:7, 5:8] = True
    assert torch.equal(found, expected)


@needs_tiles
def test_other_users_of_tiles_find_theirs_as_they_left_them():
    """PyTorch's own products in tiles, before and after, in the threads of both."""
    left, right = torch.randn(96, 512).to(HALF), torch.randn(512, 96).to(HALF)
    before = left @ right
    x, weight, bias, _ = drawn((1, 64, 64, 9, 9, 3, 1))
    for _ in range(3):
        tiled_op()(x, in_tiles(weight), bias, *[None] * 4, 64, 3, 1, 1, 1, False)
        assert torch.equal(left @ right, before)


@needs_tiles
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 32, 4, 4, dtype=HALF)}, "contiguous channels"),
        ({"x": torch.zeros(1, 4, 4, 32).half().permute(0, 3, 1, 2)}, "a map in bfloat16"),
        ({"weight": torch.zeros(3, dtype=HALF)}, "weights in tiles"),
        ({"bias": torch.zeros(15)}, r"a bias and a factor \[O\]"),
        ({"factor": torch.zeros(16, dtype=HALF)}, r"a bias and a factor \[O\]"),
        ({"gate": torch.zeros(1, 4, 4, 16).permute(0, 3, 1, 2)}, "a gate in the type of products"),
        ({"scale": torch.ones(1, 32, 1, 1, dtype=HALF)}, "a scale"),  # of 3x3 weights
        ({"wide": True}, "a residual like the result"),
        ({"activation": 4}, "an activation"),
        ({"residual": torch.zeros(1, 16, 4, 5, dtype=HALF)}, "a residual like the result"),
        ({"side": 2}, "1x1 or 3x3"),
        ({"groups": 2}, "multiples of 32"),
        ({"groups": 0}, "multiples of 32"),
    ],
)
def test_what_it_cannot_take_is_refused(change, message):
    x, weight, bias, residual = drawn((1, 32, 16, 4, 4, 3, 1))
    given = {"x": x, "weight": in_tiles(weight), "bias": bias, "gate": None, "residual": residual}
    given |= {"factor": None, "scale": None, "outputs": 16, "side": 3, "dilation": 1, "groups": 1}
    given |= {"activation": 0, "wide": False}
    with pytest.raises(RuntimeError, match=message):
        tiled_op()(*(given | change).values())


@needs_tiles
def test_the_compiler_knows_what_comes_out():
    x, weight, bias, residual = drawn((2, 32, 50, 5, 8, 3, 2))
    arguments = (x, in_tiles(weight), bias, None, residual, None, None, 50, 3, 2, 1, 1, False)
    torch.library.opcheck(tiled_op(), arguments, test_utils=("test_schema", "test_faketensor"))


@needs_tiles
def test_graphs_call_it_where_it_is_defined():
    """Eight convolutions, of which three can: of stride 1, 1x1 or 3x3, padded to keep the size."""
    options = (
        (nn.Conv2d(64, 80, 3, padding=2, dilation=2), True),
        (nn.Conv2d(80, 64, 1), False),
        (nn.Conv2d(64, 64, 3, padding=1, stride=2), True),
        (nn.Conv2d(64, 128, 3, padding=2), True),
        (nn.Conv2d(128, 128, 3, padding=1, groups=2), True),
        (nn.Conv2d(128, 64, 5, padding=2), True),
        (nn.Conv2d(64, 8, 3, padding=1), True),
        (nn.Conv2d(8, 64, 1), False),
    )
    module = convolutions(*options, dtype=HALF)
    x = torch.randn(1, 64, 9, 11, dtype=HALF).to(memory_format=torch.channels_last)
    before = module(x)
    PackedConvolutions(False)(module.graph)
    assert not list(module.graph.find_nodes(op="call_function", target=tiled_op()))
    module = convolutions(*options, dtype=HALF)
    PackedConvolutions(True)(module.graph)
    module.recompile()
    ours = module.graph.find_nodes(op="call_function", target=tiled_op())
    assert [node.args[3:] for node in ours] == [
        (None, None, None, None, 80, 3, 2, 1, 1, False),
        (None, None, None, None, 64, 1, 1, 1, 0, False),
        (None, None, None, None, 128, 3, 1, 2, 1, False),
    ]
    relus = module.graph.find_nodes(op="call_function", target=RELU)
    assert len(relus) == sum(relu for _, relu in options) - 2
    assert (module(x) - before).norm() <= 0.02 * before.norm()


@needs_tiles
@pytest.mark.parametrize("case", ["alone", "also taken elsewhere", "of another size", "scaled"])
def test_what_a_result_is_added_to_goes_into_the_op(case):
    graph, root = torch.fx.Graph(), nn.Module()
    x, other = graph.placeholder("x"), graph.placeholder("other")
    size = (1, 48, 1, 1) if case == "of another size" else (1, 48, 9, 11)
    x.meta["val"], other.meta["val"] = torch.empty(1, 32, 9, 11), torch.empty(size, dtype=HALF)
    made = append(graph, root, x, nn.Conv2d(32, 48, 3, padding=1), HALF, "0")
    made.meta["val"] = torch.empty(1, 48, 9, 11, dtype=HALF)
    total = graph.call_function(ADD, (other, made), {"alpha": 2} if case == "scaled" else {})
    total.meta["val"] = made.meta["val"]
    total = graph.call_function(RELU, (total,))
    graph.output((total, made) if case == "also taken elsewhere" else (total,))
    module = torch.fx.GraphModule(root, graph)
    maps = [torch.randn(1, 32, 9, 11, dtype=HALF), torch.randn(size, dtype=HALF)]
    maps = [map.to(memory_format=torch.channels_last) for map in maps]
    before = module(*maps)[0]
    PackedConvolutions(True)(graph)
    module.recompile()
    graph.lint()
    assert not list(graph.find_nodes(op="call_function", target=ONEDNN))
    sums = list(graph.find_nodes(op="call_function", target=ADD))
    assert len(sums) == (0 if case == "alone" else 1)
    assert (module(*maps)[0] - before).norm() <= 0.02 * before.norm()


@needs_tiles
def test_it_can_be_left_out():
    code = "import torch; from attnops.models.deploy.convolutions.tiles import has_tiles as has; "
    code += "print(has(torch.bfloat16))"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "ATTNOPS_ISA": "avx512"},
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip() == "False", run.stderr[-3000:]


def test_weights_are_laid_out_in_tiles():
    """Of terms in pairs, for any processor to write."""
    weight = torch.randn(33, 35, 3, 3).to(HALF)
    tiles = in_tiles(weight)
    assert tiles.shape == (2, 2, 9, 2, 16, 16, 2)
    assert tiles[1, 1, 5, 0, 1, 0, 0] == weight[32, 34, 1, 2]
    assert tiles[0, 0, 3, 1, 7, 4, 1] == weight[20, 15, 1, 0]
    assert (
        tiles[1, 0, :, 0, :, 1:].count_nonzero() == 0 and tiles[:, 1, :, :, 2:].count_nonzero() == 0
    )
