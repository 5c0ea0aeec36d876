"""What convolutions in tiles of AMX do with their results, and with maps in float32."""

from __future__ import annotations

import pytest
import torch
from convolution_graphs import ADD, CONVERT, MULTIPLY, Following
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, silu

from attnops.models.deploy.convolutions.pointwise import ACTIVATIONS
from attnops.models.deploy.convolutions.tiles import has_tiles, in_tiles, tiled_op

HALF, WIDE = torch.bfloat16, torch.float32

pytestmark = pytest.mark.skipif(not has_tiles(HALF), reason="this processor has no AMX")

# B, C, O, H, W, side: channels and outputs that fill no step or not half of one
SHAPES = ((1, 32, 32, 1, 1, 1), (2, 72, 70, 6, 5, 1), (1, 64, 320, 9, 11, 1), (2, 40, 41, 7, 6, 3))
# What is there beside the map and the weights; a scale only of 1x1 ones.
GIVEN = ("", "bias", "bias gate", "residual factor", "bias gate residual", "scale")
GIVEN += ("bias gate residual factor scale",)


def drawn(shape: tuple[int, ...], source: torch.dtype, wide: bool) -> dict[str, Tensor]:
    """The op's tensors, maps channels_last."""
    batch, channels, outputs, height, width, side = shape

    def pixels(count: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(batch, height, width, count).permute(0, 3, 1, 2).to(dtype)

    return {
        "x": pixels(channels, source),
        "weight": (torch.randn(outputs, channels, side, side) * 0.1).to(HALF),
        "bias": torch.randn(outputs),
        "gate": pixels(outputs, HALF),
        "residual": pixels(outputs, WIDE if wide else HALF),
        "factor": torch.randn(outputs),
        "scale": torch.rand(batch, channels, 1, 1).to(HALF),
    }


def exact(tensors: dict[str, Tensor | None], activation: str) -> Tensor:
    """What the op's formula says, of x and scaled weights rounded to bfloat16, in float64."""
    values = {name: None if t is None else t.double() for name, t in tensors.items()}
    x, weight = tensors["x"].to(HALF).double(), values["weight"]
    scales = torch.ones(len(x)) if values["scale"] is None else values["scale"].flatten(2).mT
    scales = scales.view(len(x), 1, -1, 1, 1)
    weights = [(weight * scale).to(HALF).double() for scale in scales]
    convolved = [
        conv2d(image[None], of_image, values["bias"], padding=weight.shape[2] // 2)
        for image, of_image in zip(x, weights, strict=True)
    ]
    out = torch.cat(convolved)
    out = out if values["gate"] is None else out * values["gate"]
    if values["residual"] is not None:
        factor = 1.0 if values["factor"] is None else values["factor"][:, None, None]
        out = out + factor * values["residual"]
    functions = {"none": lambda t: t, "relu": torch.relu, "gelu": gelu, "silu": silu}
    return functions[activation](out)


@pytest.mark.parametrize(
    ("shape", "given"),
    [(s, g) for s in SHAPES for g in GIVEN if s[5] == 1 or "scale" not in g],
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("source", "wide"), [(HALF, False), (WIDE, False), (HALF, True), (WIDE, True)]
)
def test_it_is_the_convolution_and_what_follows(shape, activation, given, source, wide):
    tensors = drawn(shape, source, wide)
    kept = {"x", "weight", *given.split()}
    tensors = {name: t if name in kept else None for name, t in tensors.items()}
    x, weight, *more = tensors.values()
    numbers = (shape[2], shape[5], 1, 1, ACTIVATIONS.index(activation))
    found = tiled_op()(x, in_tiles(weight), *more, *numbers, wide)
    wanted = exact(tensors, activation)
    assert found.dtype == (WIDE if wide else HALF) and found.shape == wanted.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    smooth = activation in ("gelu", "silu")
    rounded = not wide or smooth
    error, largest = (found - wanted).abs(), wanted.abs().max()
    relative = 2**-8 + (2**-10 if smooth else 0) if rounded else 0
    assert (error <= relative * wanted.abs() + 1e-5 * largest + (3e-5 if rounded else 0)).all()


def test_the_compiler_knows_what_comes_out():
    x, weight, *more = drawn((2, 32, 50, 5, 8, 1), WIDE, True).values()
    arguments = (x, in_tiles(weight), *more, 50, 1, 1, 1, 2, True)
    torch.library.opcheck(tiled_op(), arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("batch", [1, 3])
def test_results_of_an_image_are_those_of_it_alone(batch):
    """With scales of their own."""
    x, weight, *more = drawn((batch, 96, 70, 5, 7, 1), HALF, False).values()
    found = tiled_op()(x, in_tiles(weight), *more, 70, 1, 1, 1, 0, False)
    last = [t[-1:] if t.dim() == 4 else t for t in more]
    alone = tiled_op()(x[-1:], in_tiles(weight), *last, 70, 1, 1, 1, 0, False)
    assert torch.equal(found[-1:], alone)


def test_the_scale_of_a_map_goes_into_the_op():
    case = Following(nn.Conv2d(32, 48, 1), HALF, other=(1, 32, 1, 1))
    with case.graph.inserting_before(case.conv):
        product = case.step(MULTIPLY, case.conv.args[0], case.other)
    case.conv.update_arg(0, product)
    assert case.calls_left(case.conv, tolerance=0.02) == 1


def test_a_gate_goes_into_the_op():
    case = Following(nn.Conv2d(32, 48, 1), HALF)
    assert case.calls_left(case.step(MULTIPLY, case.other, case.conv), tolerance=0.02) == 1


@pytest.mark.parametrize("source", [HALF, WIDE])
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_a_rounded_activation_goes_into_the_op(source, activation):
    """And the rounding of the map that it is made of."""
    case = Following(nn.Conv2d(32, 48, 1), HALF, source=source)
    wide = getattr(case, activation)(case.step(CONVERT, case.conv, WIDE))
    assert case.calls_left(case.step(CONVERT, wide, HALF), tolerance=0.02) == 1


@pytest.mark.parametrize("scaled", [True, False])
def test_a_sum_in_float32_goes_into_the_op(scaled):
    case = Following(nn.Conv2d(32, 48, 1), HALF, other_dtype=WIDE)
    other = case.step(MULTIPLY, case.factor, case.other) if scaled else case.other
    total = case.step(ADD, case.step(CONVERT, case.conv, WIDE), other)
    assert case.calls_left(total, tolerance=0.02) == 1


def test_a_rounded_map_that_is_wanted_elsewhere_stays():
    case = Following(nn.Conv2d(32, 48, 1), HALF, source=WIDE)
    rounded = case.conv.args[0]
    assert case.calls_left(case.conv, rounded, tolerance=0.02) == 2


def test_a_result_that_is_only_widened_stays_rounded():
    case = Following(nn.Conv2d(32, 48, 1), HALF)
    assert case.calls_left(case.step(CONVERT, case.conv, WIDE), tolerance=0.02) == 2
