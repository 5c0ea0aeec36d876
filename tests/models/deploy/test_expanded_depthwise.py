"""Depthwise convolutions of what a 1x1 convolution gives, in one op, and graphs that call it."""

from __future__ import annotations

from operator import getitem
from typing import Any

import pytest
import torch
from convolution_graphs import Following, append
from older_processors import call_with_isa
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, silu

from attnops.models.deploy.convolutions.depthwise import (
    depthwise_op_with_mean,
    expanded_depthwise_op,
    has_depthwise,
    in_taps,
)
from attnops.models.deploy.convolutions.pointwise import (
    ACTIVATIONS,
    has_pointwise,
    in_rows,
    pointwise_op,
)
from attnops.models.deploy.convolutions.tiles import has_tiles

pytestmark = pytest.mark.skipif(
    not (has_depthwise(torch.float32) and has_pointwise(torch.float32)),
    reason="the CPU library is not built, or runs as baseline",
)

FUNCTIONS = {"none": lambda t: t, "relu": torch.relu, "gelu": gelu, "silu": silu}

# B, c, C, H, W, side, dilation: widths of whole blocks of pixels and others, the last rows shorter
# than a block; results that fill no panel, one slab or some; terms past a chain
SHAPES = (
    (1, 1, 1, 1, 1, 3, 1),
    (2, 16, 19, 7, 13, 3, 1),
    (1, 24, 70, 9, 5, 5, 4),
    (3, 7, 5, 4, 2, 5, 3),
    (1, 40, 64, 20, 33, 7, 2),
    (2, 300, 90, 6, 24, 3, 2),
    (1, 20, 300, 40, 70, 5, 4),
    (2, 33, 48, 3, 200, 3, 8),
)


def drawn(shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Map, weights and biases."""
    batch, inner, channels, height, width, side, _ = shape
    return {
        "x": torch.randn(batch, height, width, inner).permute(0, 3, 1, 2),
        "expansion": torch.randn(channels, inner, 1, 1) * inner**-0.5,
        "expansion_bias": torch.randn(channels),
        "weight": torch.randn(channels, 1, side, side),
        "bias": torch.randn(channels),
    }


def arguments(
    tensors: dict[str, Tensor | None], dilation: int, before: str = "silu", after: str = "silu"
) -> tuple[Any, ...]:
    """As the op takes them."""
    x, expansion, expansion_bias, weight, bias = tensors.values()
    numbers = (weight.shape[2], dilation, ACTIVATIONS.index(after))
    made = (x, in_rows(expansion), expansion_bias, ACTIVATIONS.index(before))
    return *made, in_taps(weight), bias, *numbers


def call(*given: Any) -> tuple[Tensor, Tensor]:
    return expanded_depthwise_op()(*arguments(*given))


def check(
    found: tuple[Tensor, Tensor],
    tensors: dict[str, Tensor | None],
    dilation: int,
    before: str = "silu",
    after: str = "silu",
) -> None:
    """Against float64."""
    x, expansion, expansion_bias, weight, bias = (
        None if t is None else t.double() for t in tensors.values()
    )
    wide = FUNCTIONS[before](conv2d(x, expansion, expansion_bias))
    reach = dilation * (weight.shape[2] // 2)
    wanted = FUNCTIONS[after](conv2d(wide, weight, bias, 1, reach, dilation, len(weight)))
    out, mean = found
    assert out.dtype == mean.dtype == torch.float32 and out.shape == wanted.shape
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert ((out - wanted).abs() <= 4e-6 * (1 + wanted.abs().amax())).all()
    means, largest = wanted.mean((2, 3), keepdim=True), wanted.abs().amax((2, 3), keepdim=True)
    assert mean.shape == means.shape and mean.stride(1) == 1
    assert ((mean - means).abs() <= 4e-6 * (1 + largest)).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("before", ACTIVATIONS)
@pytest.mark.parametrize("after", ["none", "silu"])
@pytest.mark.parametrize("biases", ["", "expansion_bias", "bias", "expansion_bias bias"])
def test_it_is_both_convolutions_and_the_means(shape, before, after, biases):
    kept = {"x", "expansion", "weight", *biases.split()}
    tensors = {name: t if name in kept else None for name, t in drawn(shape).items()}
    options = (tensors, shape[6], before, after)
    check(call(*options), *options)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_one_op_after_the_other(shape):
    """The same sums in the same order."""
    tensors = drawn(shape)
    x, panels, shift, activation, *others = arguments(tensors, shape[6])
    wide = pointwise_op()(x, panels, shift, None, None, None, None, shape[2], activation)
    wanted = depthwise_op_with_mean()(wide, *others)
    assert all(map(torch.equal, call(tensors, shape[6]), wanted))


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[6]])
def test_threads_change_nothing(shape):
    """They share the rows of slabs; where one begins, others are multiplied again."""
    tensors = drawn(shape)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 16):
            torch.set_num_threads(count)
            results.append(call(tensors, shape[6]))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, results[0], result))


def test_a_value_that_is_no_number_reaches_what_sees_it():
    tensors = drawn((1, 20, 24, 12, 15, 5, 2))
    tensors["x"][0, 3, 6, 7] = float("nan")
    found = call(tensors, 2)[0].isnan()
    assert found[0, :, 2:11:2, 3:12:2].all() and found.sum() == 25 * 24


def test_it_reads_and_writes_nothing_outside():
    """Of a map whose neighbours in memory are no numbers, and stay what they are."""
    tensors = drawn((1, 21, 37, 6, 11, 5, 3))
    wanted = call(tensors, 3)
    x = tensors["x"]
    memory = torch.full((x.numel() + 4096,), float("nan"))
    inside = memory[2048:-2048].view(1, 6, 11, 21)
    inside.copy_(x.permute(0, 2, 3, 1))
    tensors["x"] = inside.permute(0, 3, 1, 2)
    assert all(map(torch.equal, call(tensors, 3), wanted))
    assert memory[:2048].isnan().all() and memory[-2048:].isnan().all()


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_older_processors_compute_the_same(isa, tmp_path):
    tensors = drawn((2, 37, 43, 9, 21, 5, 4))
    found = call_with_isa(isa, "test_expanded_depthwise", "t.call(tensors, 4)", tensors, tmp_path)
    check(found, tensors, 4)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(1, 24, 4, 4), "contiguous channels"),
        (0, torch.zeros(1, 4, 4, 24).bfloat16().permute(0, 3, 1, 2), "in float32 to expand"),
        (0, torch.zeros(1, 4, 4, 16).permute(0, 3, 1, 2), "in panels of 16 channels and 40"),
        (1, torch.zeros(3), "weights of the expansion in panels"),
        (2, torch.zeros(39), r"a bias \[C\] of the expansion"),
        (3, 4, "an activation of the expansion"),
        (4, torch.zeros(360), r"weights \[side \* side, C\]"),
        (4, torch.zeros(8, 40), r"weights \[side \* side, C\]"),
        (5, torch.zeros(39), r"a bias \[C\]"),
        (6, 4, "a side of 3, 5 or 7"),
        (7, 0, "and a dilation"),
        (8, 4, "an activation"),
    ],
)
def test_what_it_cannot_take_is_refused(position, value, message):
    given = list(arguments(drawn((1, 24, 40, 4, 4, 3, 1)), 1))
    given[position] = value
    with pytest.raises(RuntimeError, match=message):
        expanded_depthwise_op()(*given)


def test_the_compiler_knows_what_comes_out():
    given = arguments(drawn((2, 24, 40, 5, 8, 3, 2)), 2)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(expanded_depthwise_op(), given, test_utils=tests)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["alone", "taken twice", "without a mean"])
def test_graphs_call_it_where_it_is_defined(kind, dtype):
    """Where squeeze-and-excitation follows, and nothing else takes the wide map."""
    if dtype == torch.bfloat16 and not has_tiles(dtype):
        pytest.skip("the library multiplies bfloat16 on processors with AMX")
    case = Following(nn.Conv2d(24, 48, 1), dtype)
    wide = case.silu(case.conv) if dtype == torch.float32 else case.conv
    conv = append(case.graph, case.root, wide, nn.Conv2d(48, 48, 5, 1, 4, 2, 48), dtype, "1")
    conv.meta["val"] = torch.empty(case.size, dtype=dtype)
    outputs = [conv]
    if kind != "without a mean":
        outputs.append(case.step(torch.ops.aten.mean.dim, conv, [2, 3], True))
    if kind == "taken twice":
        outputs.append(case.step(torch.ops.aten.relu.default, wide))
    case.calls_left(*outputs, tolerance=1e-5 if dtype == torch.float32 else 0.02)
    ours = case.graph.find_nodes(op="call_function", target=expanded_depthwise_op())
    assert len(ours) == (kind == "alone" and dtype == torch.float32)
    if ours:
        left = {node.target for node in case.graph.nodes if node.op == "call_function"}
        assert left == {torch.ops.aten.clone.default, expanded_depthwise_op(), getitem}
