"""Depthwise convolutions in the C++ library, and how graphs come to call them."""

from __future__ import annotations

from operator import getitem

import pytest
import torch
from convolution_graphs import CONVERT, Following, convolutions
from older_processors import call_with_isa
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, silu

from attnops.models.deploy.convolutions.depthwise import (
    depthwise_op,
    depthwise_op_with_mean,
    has_depthwise,
    in_taps,
)
from attnops.models.deploy.convolutions.packing import PackedConvolutions
from attnops.models.deploy.convolutions.pointwise import ACTIVATIONS

pytestmark = pytest.mark.skipif(
    not has_depthwise(torch.float32), reason="the CPU library is not built, or runs as baseline"
)

FUNCTIONS = {"none": lambda t: t, "relu": torch.relu, "gelu": gelu, "silu": silu}
ERRORS = {torch.float64: 1e-14, torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 2**-8}

# B, C, H, W, side, dilation: channels that fill no vector, one slab or some; maps smaller than the
# kernel reaches, as wide as one block of results, or wider
SHAPES = (
    (1, 1, 1, 1, 3, 1),
    (2, 19, 7, 13, 3, 1),
    (1, 70, 9, 5, 5, 4),
    (3, 5, 3, 2, 5, 3),
    (1, 64, 20, 33, 7, 2),
    (1, 300, 40, 70, 5, 4),
    (2, 33, 4, 200, 3, 8),
)


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Map, weights and bias of a convolution."""
    batch, channels, height, width, side, _ = shape
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(batch, height, width, channels).permute(0, 3, 1, 2).to(dtype)
    return x, torch.randn(channels, 1, side, side, dtype=wide), torch.randn(channels, dtype=wide)


def call(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, activation: str = "none"
) -> Tensor:
    number = ACTIVATIONS.index(activation)
    return depthwise_op()(x, taps(weight), bias, weight.shape[2], dilation, number)


def call_with_mean(
    x: Tensor, weight: Tensor, bias: Tensor, dilation: int, activation: str
) -> tuple[Tensor, Tensor]:
    number = ACTIVATIONS.index(activation)
    return depthwise_op_with_mean()(x, taps(weight), bias, weight.shape[2], dilation, number)


def check_mean(mean: Tensor, x: Tensor, results: Tensor) -> None:
    """Of what the convolution and the activation give in float64."""
    wanted, largest = results.mean((2, 3), keepdim=True), results.abs().amax((2, 3), keepdim=True)
    assert mean.dtype == x.dtype and mean.shape == wanted.shape and mean.stride(1) == 1
    assert ((mean - wanted).abs() <= ERRORS[x.dtype] * (1 + largest)).all()


def taps(weight: Tensor) -> Tensor:
    """Weights as the op takes them, in their own dtype."""
    return weight.flatten(1).t().contiguous()


def exact(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, activation: str) -> Tensor:
    """What PyTorch computes in float64."""
    bias = None if bias is None else bias.double()
    reach = dilation * (weight.shape[2] // 2)
    out = conv2d(x.double(), weight.double(), bias, 1, reach, dilation, x.shape[1])
    return FUNCTIONS[activation](out)


def check(found: Tensor, x: Tensor, wanted: Tensor) -> None:
    assert found.dtype == x.dtype and found.shape == wanted.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert ((found - wanted).abs() <= ERRORS[x.dtype] * (1 + wanted.abs())).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ERRORS)
def test_it_is_the_convolution_and_the_activation(shape, activation, dtype):
    x, weight, bias = drawn(shape, dtype)
    for given in (bias, None):
        wanted = exact(x, weight, given, shape[5], activation)
        check(call(x, weight, given, shape[5], activation), x, wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("dtype", ERRORS)
def test_it_gives_the_means_too(shape, activation, dtype):
    x, weight, bias = drawn(shape, dtype)
    out, mean = call_with_mean(x, weight, bias, shape[5], activation)
    assert torch.equal(out, call(x, weight, bias, shape[5], activation))
    check_mean(mean, x, exact(x, weight, bias, shape[5], activation))


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[5]])
def test_threads_change_nothing(shape):
    """They share the rows of slabs; where one begins, others are read again."""
    x, weight, bias = drawn(shape, torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 16):
            torch.set_num_threads(count)
            results.append(depthwise_op_with_mean()(x, in_taps(weight), bias, *shape[4:], 3))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, results[0], result))


def test_a_value_that_is_no_number_reaches_what_sees_it():
    x, weight, bias = drawn((1, 20, 12, 15, 5, 2), torch.float32)
    x[0, 3, 6, 7] = float("nan")
    found = call(x, weight, bias, 2).isnan()
    assert found[0, 3, 2:11:2, 3:12:2].all() and found.sum() == 25


def test_it_reads_and_writes_nothing_outside():
    """Of a map whose neighbours in memory are no numbers, and stay what they are."""
    x, weight, bias = drawn((1, 37, 6, 11, 5, 3), torch.float32)
    wanted = call(x, weight, bias, 3)
    memory = torch.full((x.numel() + 4096,), float("nan"))
    inside = memory[2048:-2048].view(1, 6, 11, 37)
    inside.copy_(x.permute(0, 2, 3, 1))
    assert torch.equal(call(inside.permute(0, 3, 1, 2), weight, bias, 3), wanted)


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_older_processors_compute_the_same(isa, tmp_path):
    tensors = drawn((2, 43, 9, 21, 5, 4), torch.bfloat16)
    code = "t.call_with_mean(*tensors, 4, 'silu')"
    found, mean = call_with_isa(isa, "test_depthwise", code, tensors, tmp_path)
    results = exact(*tensors, 4, "silu")
    check(found, tensors[0], results)
    check_mean(mean, tensors[0], results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 32, 4, 4)}, "contiguous channels"),
        ({"weight": torch.zeros(3)}, r"weights \[side \* side, C\]"),
        ({"weight": torch.zeros(9, 32, dtype=torch.bfloat16)}, "in float32"),
        ({"bias": torch.zeros(31)}, r"a bias \[C\]"),
        ({"side": 4}, "a side of 3, 5 or 7"),
        ({"dilation": 0}, "and a dilation"),
        ({"activation": 4}, "an activation"),
    ],
)
def test_what_it_cannot_take_is_refused(change, message):
    x, weight, bias = drawn((1, 32, 4, 4, 3, 1), torch.float32)
    given = {"x": x, "weight": in_taps(weight), "bias": bias}
    given |= {"side": 3, "dilation": 1, "activation": 0}
    with pytest.raises(RuntimeError, match=message):
        depthwise_op()(*(given | change).values())


def test_the_compiler_knows_what_comes_out():
    x, weight, bias = drawn((2, 32, 5, 8, 3, 2), torch.float32)
    arguments = (x, in_taps(weight), bias, 3, 2, 3)
    tests = ("test_schema", "test_faketensor")
    for op in (depthwise_op(), depthwise_op_with_mean()):
        torch.library.opcheck(op, arguments, test_utils=tests)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_call_it_where_it_is_defined(dtype):
    """Of six convolutions two can: of a channel each, a kernel it knows, the map's size kept."""
    options = (
        (nn.Conv2d(32, 32, 5, padding=8, dilation=4, groups=32), True),
        (nn.Conv2d(32, 32, 3, padding=1, stride=2, groups=32), False),
        (nn.Conv2d(32, 64, 3, padding=1, groups=32), False),
        (nn.Conv2d(64, 64, 3, padding=1, groups=64), False),
        (nn.Conv2d(64, 64, 3, groups=64), False),
        (nn.Conv2d(64, 64, 9, padding=4, groups=64), True),
    )
    x = torch.randn(1, 32, 9, 11).to(dtype).to(memory_format=torch.channels_last)
    module = convolutions(*options, dtype=dtype)
    before = module(x).float()
    PackedConvolutions(False)(module.graph)
    assert not list(module.graph.find_nodes(op="call_function", target=depthwise_op()))
    module = convolutions(*options, dtype=dtype)
    PackedConvolutions(True)(module.graph)
    module.recompile()
    ours = module.graph.find_nodes(op="call_function", target=depthwise_op())
    relu = ACTIVATIONS.index("relu")
    assert [node.args[3:] for node in ours] == [(5, 4, relu), (3, 1, 0)]
    error = (module(x).float() - before).abs().max()
    assert error <= (1e-5 if dtype == torch.float32 else 0.02) * before.abs().max()


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_a_smooth_activation_goes_into_the_op(activation):
    case = Following(nn.Conv2d(48, 48, 5, padding=4, dilation=2, groups=48))
    assert case.calls_left(getattr(case, activation)(case.conv)) == 1


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_one_that_is_rounded_goes_into_the_op(activation):
    half = torch.bfloat16
    case = Following(nn.Conv2d(48, 48, 3, padding=1, groups=48), half)
    wide = getattr(case, activation)(case.step(CONVERT, case.conv, torch.float32))
    assert case.calls_left(case.step(CONVERT, wide, half), tolerance=0.02) == 1


def test_a_silu_with_another_constant_stays():
    case = Following(nn.Conv2d(48, 48, 3, padding=1, groups=48))
    assert case.calls_left(case.silu(case.conv, 2)) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["of each channel", "in two dimensions", "of rows", "twice"])
def test_a_mean_goes_into_the_op(kind, dtype):
    """That of each channel, which squeeze-and-excitation takes beside the map."""
    case = Following(nn.Conv2d(48, 48, 5, padding=2, groups=48), dtype)
    over, kept = [-1] if kind == "of rows" else [2, -1], kind != "in two dimensions"
    args = (torch.ops.aten.mean.dim, case.conv, over, kept)
    means = [case.step(*args) for _ in range(2 if kind == "twice" else 1)]
    left = case.calls_left(case.conv, *means, tolerance=1e-5 if dtype == torch.float32 else 0.02)
    # The op and its two results, or the op and the means as they were.
    assert left == {"of each channel": 3, "twice": 3}.get(kind, 2)
    parts = [node for node in case.graph.nodes if node.target is getitem]
    assert len(parts) == (2 if kind == "of each channel" else 0)
