"""Convolutions in float32 by the tiles of AMX, which multiply bfloat16: in parts."""

from __future__ import annotations

import pytest
import torch
from convolution_graphs import convolutions
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, silu

from attnops.models.deploy.convolutions.packing import PackedConvolutions
from attnops.models.deploy.convolutions.pointwise import ACTIVATIONS
from attnops.models.deploy.convolutions.tiles import has_tiles, in_tiles, tiled_op
from attnops.models.deploy.float_parts import float_parts

needs_tiles = pytest.mark.skipif(not has_tiles(torch.float32), reason="this processor has no AMX")

# B, C, O, H, W, side, dilation, groups: channels and outputs that fill no tile; pixels that fill no
# step, or none past it; rows that a thread lays out for others; weights that fill several blocks
SHAPES = (
    (1, 32, 32, 1, 1, 1, 1, 1),
    (1, 64, 64, 4, 8, 1, 1, 1),
    (2, 72, 33, 5, 7, 1, 1, 1),
    (3, 40, 70, 6, 5, 1, 1, 1),
    (2, 1200, 300, 5, 11, 1, 1, 1),
    (1, 4000, 160, 5, 12, 1, 1, 1),
    (1, 96, 96, 5, 33, 1, 1, 3),
    (1, 32, 32, 1, 1, 3, 1, 1),
    (2, 48, 40, 9, 7, 3, 2, 1),
    (3, 64, 96, 2, 3, 3, 4, 1),
    (1, 64, 32, 33, 31, 3, 36, 1),
    (1, 640, 64, 19, 14, 3, 5, 1),
    (1, 1024, 320, 6, 11, 3, 1, 2),
)
GIVEN = ("", "bias", "bias gate", "residual factor", "bias gate residual", "scale")
GIVEN += ("bias gate residual factor scale",)
FUNCTIONS = {"none": lambda t: t, "relu": torch.relu, "gelu": gelu, "silu": silu}


def drawn(shape: tuple[int, ...], names: str = " ".join(GIVEN)) -> dict[str, Tensor | None]:
    """The op's tensors, maps channels_last, of which those of `names` are there."""
    batch, channels, outputs, height, width, side, _, groups = shape
    terms = channels // groups * side * side

    def pixels(count: int) -> Tensor:
        return torch.randn(batch, height, width, count).permute(0, 3, 1, 2)

    more = {
        "bias": torch.randn(outputs),
        "gate": pixels(outputs),
        "residual": pixels(outputs),
        "factor": torch.randn(outputs),
        "scale": torch.randn(batch, channels, 1, 1),
    }
    return {
        "x": pixels(channels),
        "weight": torch.randn(outputs, channels // groups, side, side) * terms**-0.5,
        **{name: t if name in names.split() else None for name, t in more.items()},
    }


def call(tensors: dict[str, Tensor | None], shape: tuple[int, ...], activation: str) -> Tensor:
    x, weight, *more = tensors.values()
    _, _, outputs, _, _, side, dilation, groups = shape
    numbers = (outputs, side, dilation, groups, ACTIVATIONS.index(activation), True)
    return tiled_op()(x, in_tiles(weight), *more, *numbers)


def formula(
    tensors: dict[str, Tensor | None], shape: tuple[int, ...], activation: str, dtype: torch.dtype
) -> Tensor:
    """What the op's formula says, by PyTorch in `dtype`."""
    x, weight, bias, gate, residual, factor, scale = (
        None if t is None else t.to(dtype) for t in tensors.values()
    )
    side, dilation, groups = shape[5:]
    options = {"padding": dilation * (side // 2), "dilation": dilation, "groups": groups}
    out = conv2d(x if scale is None else x * scale, weight, bias, **options)
    out = out if gate is None else out * gate
    if residual is not None:
        out = out + (residual if factor is None else factor[:, None, None] * residual)
    return FUNCTIONS[activation](out)


def check(tensors: dict[str, Tensor | None], shape: tuple[int, ...], activation: str) -> None:
    """It errs by what a product in float32 may err by, as PyTorch's does."""
    found = call(tensors, shape, activation)
    exact = formula(tensors, shape, activation, torch.float64)
    usual = formula(tensors, shape, activation, torch.float32)
    assert found.dtype == torch.float32 and found.shape == exact.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    errors = [(other - exact).norm() for other in (found, usual)]
    assert errors[0] <= 2 * errors[1] + 2e-7 * exact.norm()
    assert (found - exact).abs().max() <= 4e-6 * exact.abs().max().clamp(min=1)


@needs_tiles
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("names", GIVEN)
def test_it_errs_as_little_as_pytorch(shape, names):
    if "scale" in names and (shape[5] == 3 or shape[7] > 1):
        names = names.replace("scale", "")
    for activation in ACTIVATIONS if names in ("bias", GIVEN[-1]) else ("none",):
        check(drawn(shape, names), shape, activation)


# B, C, O, H, W, groups: sides odd and even, of one pixel, and results of one row
HALVED = (
    (1, 32, 32, 1, 1, 1),
    (2, 48, 40, 9, 7, 1),
    (1, 64, 96, 2, 13, 1),
    (3, 40, 70, 8, 6, 1),
    (1, 640, 64, 39, 28, 1),
    (1, 128, 192, 17, 64, 2),
    (2, 512, 320, 12, 11, 1),
)


@needs_tiles
@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("shape", HALVED, ids=str)
def test_stride_two_is_every_second_result(shape, threads):
    """Of memory that held no numbers, with a residual of the result's size."""
    batch, channels, outputs, height, width, groups = shape
    full = (batch, channels, outputs, height, width, 3, 1, groups)
    tensors = drawn(full, "bias residual")
    tensors["residual"] = tensors["residual"][:, :, ::2, ::2]
    tensors["residual"] = tensors["residual"].contiguous(memory_format=torch.channels_last)
    x, weight, *more = tensors.values()
    for size in (1 << 21, 1 << 19, 1 << 17, 1 << 15) * 4:
        torch.full((size,), float("nan"))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = tiled_op()(x, in_tiles(weight), *more, outputs, 3, 1, groups, 1, True, 2)
    finally:
        torch.set_num_threads(before)
    exact = conv2d(x.double(), weight.double(), more[0].double(), 2, 1, 1, groups)
    exact = (exact + more[2].double()).relu()
    assert found.shape == exact.shape and found.is_contiguous(memory_format=torch.channels_last)
    assert (found - exact).abs().max() <= 4e-6 * exact.abs().max().clamp(min=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=8))
def test_parts_add_up_to_the_number(numbers):
    """To the last bit, where the last part is not below the normal numbers, nor the first past
    the largest of bfloat16.
    """
    x = torch.tensor(numbers, dtype=torch.float32)
    x = x[(x.abs() < 3.38e38) & ((x.abs() > 2**-100) | (x == 0))]
    parts = float_parts(x)
    assert parts.dtype == torch.bfloat16 and parts.shape == (3, *x.shape)
    first, second, third = parts.double()
    assert torch.equal(first + second + third, x.double())
    assert (second.abs() <= 2**-8 * x.abs()).all() and (third.abs() <= 2**-16 * x.abs()).all()


@needs_tiles
def test_single_bits_are_multiplied_exactly():
    """Products whose terms meet in all parts: of numbers of 12 bits they are floats."""
    whole = torch.arange(-2048, 2048).float()
    x = whole.roll(999).view(1, 1, 64, 64).expand(1, 32, 64, 64).clone()
    x[:, 1:] = 0
    x = x.to(memory_format=torch.channels_last)
    for number in (1.0, 3.0, 2047.0, -1365.0):
        weight = torch.full((32, 32, 1, 1), number)
        shape = (1, 32, 32, 64, 64, 1, 1, 1)
        tensors = {"x": x, "weight": weight} | dict.fromkeys(("b", "g", "r", "f", "s"))
        assert torch.equal(call(tensors, shape, "none"), (number * x[:, :1]).expand(1, 32, 64, 64))


@needs_tiles
@pytest.mark.parametrize("size", [1e-30, 1e-18, 1e18, 1e30])
def test_sizes_of_numbers_change_nothing(size):
    shape = (1, 64, 48, 5, 9, 1, 1, 1)
    tensors = drawn(shape, "")
    usual = call(tensors, shape, "none")
    tensors["x"] = tensors["x"] * size
    found = call(tensors, shape, "none") / size
    assert (found - usual).abs().max() <= 4e-6 * usual.abs().max()


@needs_tiles
@pytest.mark.parametrize("shape", [SHAPES[4], SHAPES[8], SHAPES[11]], ids=str)
def test_threads_and_memory_change_nothing(shape):
    """Memory that held no numbers, too."""
    names = "bias residual" if shape[5] == 3 else GIVEN[-1]
    tensors = drawn(shape, names)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for size in (1 << 21, 1 << 19, 1 << 17, 1 << 15) * 4:
                torch.full((size,), float("nan"))
            results.append(call(tensors, shape, "gelu"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert not results[0].isnan().any()


@needs_tiles
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", [1, 3])
def test_what_is_not_finite_stays_in_its_neighbourhood(side, value):
    """And does not become finite."""
    shape = (1, 40, 40, 12, 12, side, 1, 1)
    tensors = drawn(shape, "bias")
    tensors["x"][0, 3, 5, 6] = value
    found = call(tensors, shape, "none").isfinite()
    reach = side // 2
    expected = torch.ones(1, 40, 12, 12, dtype=torch.bool)
    expected[:, :, 5 - reach : 6 + reach, 6 - reach : 7 + reach] = False
    assert torch.equal(found, expected)


@needs_tiles
@pytest.mark.parametrize("batch", [1, 3])
def test_results_of_an_image_are_those_of_it_alone(batch):
    """With scales of their own."""
    shape = (batch, 96, 70, 5, 7, 1, 1, 1)
    tensors = drawn(shape)
    last = {n: t[-1:] if t.dim() == 4 and n != "weight" else t for n, t in tensors.items()}
    assert torch.equal(call(tensors, shape, "silu")[-1:], call(last, shape, "silu"))


@needs_tiles
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 32, 4, 4).bfloat16()}, "float32 maps for weights in parts"),
        ({"wide": False}, "float32 maps for weights in parts"),
        ({"gate": torch.zeros(1, 16, 4, 4).bfloat16()}, "a gate in the type of products"),
        ({"scale": torch.ones(1, 32, 1, 1).bfloat16()}, "a scale .* in the type of products"),
        ({"residual": torch.zeros(1, 16, 4, 4).bfloat16()}, "a residual like the result"),
        ({"stride": 2}, "stride 1, or 2 of 3x3"),
        ({"stride": 3}, "stride 1, or 2 of 3x3"),
    ],
)
def test_what_it_cannot_take_is_refused(change, message):
    x, weight, *_ = drawn((1, 32, 16, 4, 4, 1, 1, 1)).values()
    names = ("bias", "gate", "residual", "factor", "scale")
    arguments = {"x": x, "weight": in_tiles(weight)} | dict.fromkeys(names)
    arguments |= {"outputs": 16, "side": 1, "dilation": 1, "groups": 1, "activation": 0}
    arguments |= {"wide": True, "stride": 1} | change
    maps = ("x", "gate", "residual")
    arguments |= {
        n: t.to(memory_format=torch.channels_last)
        for n, t in arguments.items()
        if n in maps and t is not None
    }
    with pytest.raises(RuntimeError, match=message):
        tiled_op()(*arguments.values())


@needs_tiles
def test_the_compiler_knows_what_comes_out():
    x, weight, *more = drawn((2, 32, 50, 5, 8, 1, 1, 1)).values()
    tests = ("test_schema", "test_faketensor")
    arguments = (x, in_tiles(weight), *more, 50, 1, 1, 1, 2, True)
    torch.library.opcheck(tiled_op(), arguments, test_utils=tests)
    x, weight, bias, *_ = drawn((2, 32, 50, 5, 8, 3, 1, 1)).values()
    arguments = (x, in_tiles(weight), bias, *[None] * 4, 50, 3, 1, 1, 2, True, 2)
    torch.library.opcheck(tiled_op(), arguments, test_utils=tests)


@needs_tiles
def test_graphs_call_it_where_it_is_defined():
    """Eight convolutions, of which five can: 1x1 or 3x3, padded to keep the size, of stride 1 or 2
    and 32 channels, in groups of whole steps of them.
    """
    options = (
        (nn.Conv2d(64, 80, 3, padding=2, dilation=2), True),
        (nn.Conv2d(80, 64, 1), False),
        (nn.Conv2d(64, 64, 3, padding=1, stride=2), True),
        (nn.Conv2d(64, 128, 3, padding=31, dilation=31), True),
        (nn.Conv2d(128, 128, 3, padding=1, groups=2), True),
        (nn.Conv2d(128, 64, 5, padding=2), True),
        (nn.Conv2d(64, 24, 3, padding=1), True),
        (nn.Conv2d(24, 64, 1), False),
    )
    module = convolutions(*options, dtype=torch.float32)
    x = torch.randn(1, 64, 9, 11).to(memory_format=torch.channels_last)
    before = module(x)
    PackedConvolutions(True)(module.graph)
    module.recompile()
    ours = module.graph.find_nodes(op="call_function", target=tiled_op())
    assert [node.args[3:] for node in ours] == [
        (None, None, None, None, 80, 3, 2, 1, 1, True),
        (None, None, None, None, 64, 1, 1, 1, 0, True),
        (None, None, None, None, 64, 3, 1, 1, 1, True, 2),
        (None, None, None, None, 128, 3, 31, 1, 1, True),
        (None, None, None, None, 128, 3, 1, 2, 1, True),
    ]
    assert (module(x) - before).abs().max() <= 1e-5 * before.abs().max()


def test_weights_are_laid_out_in_parts():
    """For any processor to write."""
    weight = torch.randn(33, 35, 3, 3)
    tiles = in_tiles(weight)
    assert tiles.shape == (2, 2, 9, 3, 2, 16, 16, 2) and tiles.dtype == torch.bfloat16
    assert tiles[1, 1, 5, :, 0, 1, 0, 0].float().sum() == weight[32, 34, 1, 2]
    assert tiles[0, 0, 3, :, 1, 7, 4, 1].float().sum() == weight[20, 15, 1, 0]
