"""1x1 convolutions in the C++ library, and how graphs come to call them."""

from __future__ import annotations

import pytest
import torch
from convolution_graphs import ADD, MULTIPLY, Following, convolutions
from older_processors import call_with_isa
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, silu

from attnops.models.deploy.convolutions import packing
from attnops.models.deploy.convolutions.packing import PackedConvolutions
from attnops.models.deploy.convolutions.pointwise import (
    ACTIVATIONS,
    has_pointwise,
    in_rows,
    pointwise_op,
)

pytestmark = pytest.mark.skipif(
    not has_pointwise(torch.float32), reason="the CPU library is not built, or runs as baseline"
)

# B, C, O, H, W: channels and outputs that fill no panel; pixels fewer than a block of rows, none
# past it, some past it; terms and weights past a block, outputs whose rows are long
SHAPES = (
    (1, 1, 1, 1, 1),
    (2, 16, 16, 1, 3),
    (1, 32, 64, 4, 6),
    (3, 40, 70, 5, 7),
    (1, 320, 320, 9, 11),
    (2, 64, 192, 25, 1),
    (1, 1100, 150, 6, 11),
    (1, 600, 1030, 5, 13),
)


def drawn(shape: tuple[int, ...]) -> dict[str, Tensor]:
    """The op's tensors, maps channels_last."""
    batch, channels, outputs, height, width = shape

    def pixels(count: int) -> Tensor:
        return torch.randn(batch, height, width, count).permute(0, 3, 1, 2)

    return {
        "x": pixels(channels),
        "weight": torch.randn(outputs, channels, 1, 1) * channels**-0.5,
        "bias": torch.randn(outputs),
        "gate": pixels(outputs),
        "residual": pixels(outputs),
        "factor": torch.randn(outputs),
        "scale": torch.randn(batch, channels, 1, 1),
    }


def call(tensors: dict[str, Tensor | None], activation: str = "none") -> Tensor:
    x, weight, *more = tensors.values()
    number = ACTIVATIONS.index(activation)
    return pointwise_op()(x, in_rows(weight), *more, weight.shape[0], number)


def exact(tensors: dict[str, Tensor | None], activation: str) -> Tensor:
    """What the op's formula says, in float64."""
    x, weight, bias, gate, residual, factor, scale = (
        None if t is None else t.double() for t in tensors.values()
    )
    out = conv2d(x if scale is None else x * scale, weight, bias)
    out = out if gate is None else out * gate
    if residual is not None:
        out = out + (residual if factor is None else factor[:, None, None] * residual)
    functions = {"none": lambda t: t, "relu": torch.relu, "gelu": gelu, "silu": silu}
    return functions[activation](out)


def check(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == torch.float32 and found.shape == wanted.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - wanted).abs().max() <= 2e-6 * wanted.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "given",
    [
        *("", "bias", "bias gate", "residual", "bias residual factor", "bias gate residual"),
        *("scale", "bias residual scale"),
    ],
)
def test_it_is_the_convolution_and_what_follows(shape, activation, given):
    tensors = drawn(shape)
    kept = {"x", "weight", *given.split()}
    tensors = {name: t if name in kept else None for name, t in tensors.items()}
    check(call(tensors, activation), exact(tensors, activation))


def test_all_that_can_follow_at_once():
    tensors = drawn((2, 48, 80, 7, 9))
    for activation in ACTIVATIONS:
        check(call(tensors, activation), exact(tensors, activation))


@pytest.mark.parametrize("shape", [(1, 48, 320, 2, 9), (2, 64, 70, 13, 11), (1, 1030, 512, 3, 5)])
def test_threads_change_nothing(shape):
    """They share pixels, outputs, or both."""
    tensors = drawn(shape)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 16):
            torch.set_num_threads(count)
            results.append(call(tensors, "gelu"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], result) for result in results[1:])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_value_that_is_no_number_stays_at_its_pixel(activation):
    tensors = drawn((1, 40, 33, 6, 9))
    tensors["x"][0, 3, 2, 5] = float("nan")
    found = call(tensors, activation).isnan()
    assert found[0, :, 2, 5].all() and found.sum() == 33


def test_a_silu_of_far_values():
    values = torch.tensor([torch.inf, torch.nan, 3e38, 88, 1e-30, 0, -1e-30, -1, -20, -80, -1e4])
    tensors = dict.fromkeys(drawn((1, 16, 1, 1, 1)))
    tensors |= {"x": torch.ones(1, 16, 2, 3).to(memory_format=torch.channels_last)}
    tensors |= {"weight": torch.zeros(len(values), 16, 1, 1), "bias": values}
    wanted = silu(values.double()).float()[:, None, None].expand(1, -1, 2, 3)
    found = call(tensors, "silu")
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-30, equal_nan=True)


def test_it_reads_and_writes_nothing_outside():
    """Maps whose neighbours in memory are no numbers, and stay what they are."""
    tensors = drawn((1, 40, 33, 5, 7))
    wanted = call(tensors, "relu")
    for name in ("x", "gate", "residual"):
        map = tensors[name].permute(0, 2, 3, 1)
        memory = torch.full((map.numel() + 2048,), float("nan"))
        inside = memory[1024:-1024].view(map.shape)
        inside.copy_(map)
        tensors[name] = inside.permute(0, 3, 1, 2)
    assert torch.equal(call(tensors, "relu"), wanted)


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_older_processors_compute_the_same(isa, tmp_path):
    tensors = drawn((2, 70, 90, 9, 13))
    found = call_with_isa(isa, "test_pointwise", "t.call(tensors, 'gelu')", tensors, tmp_path)
    check(found, exact(tensors, "gelu"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 32, 4, 4)}, "contiguous channels"),
        ({"x": torch.zeros(1, 4, 4, 32).double().permute(0, 3, 1, 2)}, "a map .* in float32"),
        ({"weight": torch.zeros(3)}, "weights in panels"),
        ({"bias": torch.zeros(15)}, r"a bias and a factor \[O\]"),
        ({"factor": torch.zeros(15)}, r"a bias and a factor \[O\]"),
        ({"gate": torch.zeros(1, 16, 4, 5)}, "like the result"),
        ({"residual": torch.zeros(1, 16, 4, 4)}, "like the result"),
        ({"scale": torch.zeros(1, 16, 1, 1)}, r"a scale \[B, C, 1, 1\]"),
        ({"scale": torch.zeros(1, 32, 1, 1).double()}, "a scale"),
        ({"scale": torch.zeros(1, 32)}, "a scale"),
        ({"activation": 4}, "an activation"),
    ],
)
def test_what_it_cannot_take_is_refused(change, message):
    given = drawn((1, 32, 16, 4, 4))
    given["weight"] = in_rows(given["weight"])
    given |= {"outputs": 16, "activation": 0}
    with pytest.raises(RuntimeError, match=message):
        pointwise_op()(*(given | change).values())


def test_the_compiler_knows_what_comes_out():
    x, weight, *more = drawn((2, 32, 50, 5, 8)).values()
    arguments = (x, in_rows(weight), *more, 50, 2)
    torch.library.opcheck(pointwise_op(), arguments, test_utils=("test_schema", "test_faketensor"))


def test_weights_are_laid_out_in_panels():
    weight = torch.arange(33 * 35.0).view(33, 35, 1, 1)
    rows = in_rows(weight)
    assert rows.shape == (3, 35, 16)
    assert rows[1, 34, 5] == weight[21, 34] and rows[2, 3, 0] == weight[32, 3]
    assert rows[2, :, 1:].count_nonzero() == 0


def test_graphs_call_it_where_it_is_defined(monkeypatch):
    """Seven convolutions, of which two can: 1x1, of stride 1, of one group and whole panels."""
    options = (
        (nn.Conv2d(64, 80, 1), True),
        (nn.Conv2d(80, 64, 1, stride=2), False),
        (nn.Conv2d(64, 64, 1, groups=2), False),
        (nn.Conv2d(64, 128, 1, padding=1), True),
        (nn.Conv2d(128, 8, 1), False),
        (nn.Conv2d(8, 64, 1), False),
        (nn.Conv2d(64, 24, 1), False),
    )
    monkeypatch.setattr(packing, "has_tiles", lambda dtype: False)
    x = torch.randn(1, 64, 9, 11).to(memory_format=torch.channels_last)
    module = convolutions(*options, dtype=torch.float32)
    before = module(x)
    PackedConvolutions(False)(module.graph)
    assert not list(module.graph.find_nodes(op="call_function", target=pointwise_op()))
    module = convolutions(*options, dtype=torch.float32)
    PackedConvolutions(True)(module.graph)
    module.recompile()
    ours = module.graph.find_nodes(op="call_function", target=pointwise_op())
    assert [node.args[3:] for node in ours] == [
        (None, None, None, None, 80, ACTIVATIONS.index("relu")),
        (None, None, None, None, 24, ACTIVATIONS.index("none")),
    ]
    assert (module(x) - before).abs().max() <= 1e-5 * before.abs().max()


@pytest.mark.parametrize("first", [True, False])
def test_a_gate_goes_into_the_op(first):
    case = Following(nn.Conv2d(32, 48, 1))
    args = (case.conv, case.other) if first else (case.other, case.conv)
    assert case.calls_left(case.step(MULTIPLY, *args)) == 1


def test_a_scaled_residual_goes_into_the_op():
    case = Following(nn.Conv2d(32, 48, 1))
    scaled = case.step(MULTIPLY, case.factor, case.other)
    assert case.calls_left(case.step(ADD, case.conv, scaled)) == 1


def test_a_scaled_map_that_is_wanted_elsewhere_is_the_residual():
    case = Following(nn.Conv2d(32, 48, 1))
    scaled = case.step(MULTIPLY, case.factor, case.other)
    assert case.calls_left(case.step(ADD, case.conv, scaled), scaled) == 2


def test_a_chain_of_all_goes_into_the_op():
    case = Following(nn.Conv2d(32, 48, 1))
    gated = case.step(MULTIPLY, case.conv, case.other)
    scaled = case.step(MULTIPLY, case.other, case.factor)
    assert case.calls_left(case.gelu(case.step(ADD, scaled, gated))) == 1


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "kind", ["of channels", "taken elsewhere", "of pixels", "of one channel", "of a small map"]
)
def test_the_scale_of_a_map_goes_into_the_op(first, kind):
    """As of squeeze-and-excitation, where nothing else takes the product."""
    size = {"of pixels": (1, 32, 9, 11), "of one channel": (1, 1, 1, 1)}.get(kind, (1, 32, 1, 1))
    case = Following(nn.Conv2d(32, 100 if kind == "of a small map" else 48, 1), other=size)
    x = case.conv.args[0]
    with case.graph.inserting_before(case.conv):
        product = case.step(MULTIPLY, *((x, case.other) if first else (case.other, x)))
    case.conv.update_arg(0, product)
    outputs = (case.conv, product) if kind == "taken elsewhere" else (case.conv,)
    assert case.calls_left(*outputs) == (1 if kind == "of channels" else 2)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_a_smooth_activation_goes_into_the_op(activation):
    case = Following(nn.Conv2d(32, 48, 1))
    assert case.calls_left(getattr(case, activation)(case.conv)) == 1


@pytest.mark.parametrize("case", ["other constant", "taken elsewhere", "of another size", "twice"])
def test_what_only_looks_like_it_stays(case):
    size = (1, 48, 1, 1) if case == "of another size" else (1, 48, 9, 11)
    following = Following(nn.Conv2d(32, 48, 1), other=size)
    if case == "other constant":
        assert following.calls_left(following.gelu(following.conv, 2)) == 6
    elif case == "taken elsewhere":
        result = following.gelu(following.conv)
        assert following.calls_left(result, following.conv) == 6
    elif case == "of another size":
        assert following.calls_left(following.step(ADD, following.conv, following.other)) == 2
    else:
        assert following.calls_left(following.step(ADD, following.conv, following.conv)) == 2
