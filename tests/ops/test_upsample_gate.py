"""`upsample_gate` on every backend against interpolate and pointwise steps in float64."""

from __future__ import annotations

import harness
import pytest
import torch
from draws import booleans, drawn, layouts, one_of, shapes
from harness import DTYPES, LAYOUTS, check_op, in_layout, skip_unsupported
from hypothesis import strategies as st

import attnops
from attnops import reference

OP = "upsample_gate"
ACTIVATIONS = ("sigmoid", "relu", "identity")
RESIDUALS = ("input", "gate", "none")
SIZES = [  # B, C, (h, w), (H, W)
    (2, 5, (3, 4), (11, 9)),
    (1, 16, (8, 8), (32, 64)),
    (1, 3, (1, 1), (7, 20)),
    (1, 19, (9, 14), (5, 6)),  # down
    (1, 2, (6, 7), (6, 7)),
    (2, 1, (5, 1), (1, 33)),
    (1, 7, (2, 40), (13, 3)),
    (1, 4, (4, 4), (1, 1)),
]


def operands(device, dtype, batch, channels, small, large):
    return [torch.randn(batch, channels, *s, device=device).to(dtype) for s in (large, small)]


def fused(*options, **named):
    return lambda x, logits: attnops.upsample_gate(logits, x, *options, **named)


def plain(*options, **named):
    return lambda x, logits: reference.upsample_gate(logits, x, *options, **named)


@pytest.mark.parametrize("align_corners", [False, True], ids=["", "aligned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_float64(backend, device, size, dtype, align_corners):
    skip_unsupported(backend, dtype)
    inputs = operands(device, dtype, *size)
    options = {"input_weight": 2.0, "align_corners": align_corners}
    for layout in ("contiguous", "channels_last"):
        arranged = [in_layout(x, layout) for x in inputs]
        found = check_op(fused(**options), plain(**options), arranged, grad_layout=layout)
        for x in found[:2]:  # the gradient of the logits takes the layout of x
            harness.assert_layout(x, layout)


@pytest.mark.parametrize("align_corners", [False, True], ids=["", "aligned"])
@pytest.mark.parametrize("input_weight", [1.0, 2.0])
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("activation_first", [False, True], ids=["", "first"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_combination_of_options(
    backend, device, activation, activation_first, residual, input_weight, align_corners
):
    options = (activation, activation_first, residual, input_weight, align_corners)
    for layout in ("contiguous", "channels_last"):
        inputs = operands(device, torch.float32, 1, 6, (3, 5), (8, 11))
        arranged = [in_layout(x, layout) for x in inputs]
        check_op(fused(*options), plain(*options), arranged)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
def test_layouts(backend, device, layout, grad_layout):
    x, logits = operands(device, torch.float32, 2, 6, (3, 2), (7, 9))
    inputs = [in_layout(x, layout), in_layout(logits, "expanded")]
    check_op(fused(), plain(), inputs, grad_layout=grad_layout)


@drawn(
    60,
    channels=shapes(2, 40),
    small=shapes(40, 40),
    large=shapes(40, 40),
    options=st.tuples(one_of(ACTIVATIONS), booleans(), one_of(RESIDUALS), st.just(1.5), booleans()),
    layout=layouts,
)
def test_any_shape(pytestconfig, channels, small, large, options, layout):
    torch.manual_seed(sum(channels))
    device = pytestconfig.getoption("--device")
    inputs = operands(device, torch.float32, *channels, small, large)
    arranged = [in_layout(x, layout) for x in inputs]
    check_op(fused(*options), plain(*options), arranged, grad_layout=layout)


def test_threads_do_not_matter(backend, device, threads):
    large = (33, 40) if backend == "cpu" else (9, 11)  # other backends have no threads
    inputs = operands(device, torch.float32, 2, 9, (5, 7), large)
    check_op(fused(), plain(), inputs)
    harness.check_runs_are_bit_equal(fused(), inputs)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("small", [(3, 4), (7, 20)], ids=str)
def test_nan_and_infinity_propagate(backend, device, activation, layout, small):
    """No further than PyTorch carries them; where nothing is resized, no neighbour is read."""
    x, logits = operands(device, torch.float32, 1, 3, small, (7, 20))
    x[0, 1, 2, 3] = torch.nan
    x[0, 2, 4, 4] = torch.inf
    logits[0, 0, 1, 1] = torch.nan
    logits[0, 1, 0, 2] = torch.inf
    logits[0, 2, 2, 3] = -torch.inf
    arranged = [in_layout(t, layout) for t in (x, logits)]
    out = fused(activation)(*arranged)
    torch.testing.assert_close(out, plain(activation)(x, logits), equal_nan=True)


def test_saturated_gates(backend, device):
    x, logits = operands(device, torch.float32, 1, 3, (3, 4), (7, 20))
    check_op(fused(), plain(), [x, logits * 300])


@pytest.mark.parametrize(
    "dims", [(0, 4, (2, 2), (5, 6)), (2, 4, (2, 3), (0, 6)), (2, 0, (2, 3), (4, 6))], ids=str
)
def test_empty(backend, device, dims):
    harness.check_empty(fused(), operands(device, torch.float32, *dims), (*dims[:2], *dims[3]))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(backend, device, layout):
    inputs = operands(device, torch.float32, 2, 4, (3, 2), (5, 6))
    leaves = [in_layout(x, layout).requires_grad_() for x in inputs]
    arguments = (*leaves, 1, False, 2, 1.0, True)
    torch.library.opcheck(torch.ops.attnops.upsample_gate.default, arguments)


@pytest.mark.parametrize("activation_first", [False, True], ids=["", "first"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(backend, device, layout, activation_first):
    skip_unsupported(backend, torch.float64)
    inputs = operands(device, torch.float64, 1, 2, (2, 3), (4, 5))
    leaves = [in_layout(x, layout).requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(fused("sigmoid", activation_first, "gate"), leaves)


@pytest.mark.inductor
def test_compiles_whole_with_dynamic_shapes(backend, device):
    second = operands(device, torch.float32, 3, 8, (4, 3), (12, 9))
    draws = [
        operands(device, torch.float32, 2, 5, (2, 3), (7, 9)),
        [in_layout(x, "channels_last") for x in second],
    ]
    harness.check_compiles(fused(), plain(), draws)


def test_exports_with_dynamic_shapes(backend, device):
    dims = [torch.export.Dim(name, min=2) for name in ("height", "width", "h", "w")]
    harness.check_exports(
        fused(),
        plain(),
        tuple(operands(device, torch.float32, 2, 5, (3, 4), (7, 9))),
        tuple(operands(device, torch.float32, 2, 5, (6, 5), (20, 11))),
        ({2: dims[0], 3: dims[1]}, {2: dims[2], 3: dims[3]}),
    )


def test_autocast_computes_in_the_autocast_dtype(backend, device):
    harness.check_autocast(fused(), operands(device, torch.float32, 1, 8, (2, 3), (5, 7)), backend)


def test_double_backward_is_refused(backend, device):
    harness.check_refuses_double_backward(
        fused(), operands(device, torch.float32, 1, 2, (2, 2), (4, 4))
    )


@harness.bad_input(
    ({"x": None}, TypeError, "x must be a tensor, got NoneType"),
    ({"logits": torch.ones(2, 4, 2, 3).int()}, TypeError, "logits has dtype torch.int32"),
    ({"logits": torch.ones(2, 4, 2, 3).half()}, ValueError, "logits is torch.float16"),
    ({"logits": torch.ones(2, 3, 2, 3)}, ValueError, r"logits must be \[2, 4, h, w\]"),
    ({"logits": torch.ones(2, 4, 0, 3)}, ValueError, r"logits are empty: \[2, 4, 0, 3\]"),
    ({"x": torch.ones(2, 4, 5)}, ValueError, r"x must be \[B, C, H, W\]"),
    ({"activation": "tanh"}, ValueError, "activation must be .* got 'tanh'"),
    ({"residual": None}, ValueError, "residual must be .* got None"),
    ({"input_weight": "2"}, TypeError, "input_weight must be a number"),
    ({"activation_first": 1}, TypeError, "activation_first must be True or False"),
    ({"align_corners": None}, TypeError, "align_corners must be True or False"),
)
def test_bad_input(change, error, message):
    arguments = {"logits": torch.ones(2, 4, 2, 3), "x": torch.ones(2, 4, 5, 6)}
    with pytest.raises(error, match=message):
        attnops.upsample_gate(**(arguments | change))
