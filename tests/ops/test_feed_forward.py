"""`feed_forward` on every backend against its convolutions and GELU in float64."""

from __future__ import annotations

import os
import subprocess
import sys

import harness
import pytest
import torch
from draws import drawn, layouts, shapes
from harness import DTYPES, LAYOUTS, check_op, in_layout, skip_unsupported

import attnops
from attnops import reference

OP = "feed_forward"
pytestmark = pytest.mark.usefixtures("without_onednn")
CASES = [  # (B, C, H, W), hidden channels, output channels, kernel
    ((2, 5, 9, 11), 13, 5, 3),
    ((1, 32, 12, 37), 64, 32, 3),
    ((1, 33, 3, 2), 70, 17, 3),
    ((2, 1, 1, 40), 16, 3, 3),
    ((1, 18, 40, 1), 33, 1, 3),
    ((1, 7, 6, 5), 9, 8, (3, 5)),
    ((1, 4, 5, 9), 6, 4, 1),
]
fused, plain = attnops.feed_forward, reference.feed_forward


def operands(device, dtype, shape, hidden, out, kernel):
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    channels = shape[1]
    tensors = [
        torch.randn(shape),
        torch.randn(hidden, channels, 1, 1) / channels**0.5,
        torch.randn(hidden, 1, *kernel) / 3,
        torch.randn(out, hidden, 1, 1) / hidden**0.5,
        torch.randn(hidden) / 2,
        torch.randn(hidden) / 2,
        torch.randn(out),
    ]
    return [t.to(device, dtype) for t in tensors]


def skip_refused(backend, inputs):
    """Skip what `backend` says it cannot run, but nothing that SegNeXt needs."""
    if backend in ("auto", "reference") or inputs[2].shape[2:] == (3, 3):
        return
    try:
        fused(*inputs)
    except attnops.BackendError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(backend, device, case, dtype):
    skip_unsupported(backend, dtype, OP)
    inputs = operands(device, dtype, *case)
    skip_refused(backend, inputs)
    for layout in ("contiguous", "channels_last"):
        inputs[0] = in_layout(inputs[0], layout)
        out, grad_x, *_ = check_op(fused, plain, inputs, grad_layout=layout)
        if inputs[0].shape[1] > 1:  # one channel is both layouts at once
            harness.assert_layout(out, layout)
            harness.assert_layout(grad_x, layout)


@pytest.mark.parametrize("biased", range(8))
def test_any_of_the_biases(backend, device, biased):
    x, *weights = operands(device, torch.float32, (1, 6, 7, 9), 11, 5, 3)
    weights, biases = weights[:3], weights[3:]
    given = [i for i in range(3) if biased >> i & 1]

    def call(op):
        def run(x, *tensors):
            rest = dict(zip(given, tensors[3:], strict=True))
            return op(x, *tensors[:3], *(rest.get(i) for i in range(3)))

        return run

    check_op(call(fused), call(plain), [x, *weights, *(biases[i] for i in given)])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
def test_layouts(backend, device, layout, grad_layout):
    x, expand, depthwise, contract, *biases = operands(
        device, torch.float32, (2, 6, 7, 9), 10, 4, 3
    )
    transposed = [w.transpose(0, 1).contiguous().transpose(0, 1) for w in (expand, contract)]
    inputs = [in_layout(x, layout), transposed[0], depthwise, transposed[1], *biases]
    check_op(fused, plain, inputs, grad_layout=grad_layout)


@drawn(30, shape=shapes(2, 40, 20, 40), layout=layouts)
def test_any_shape(pytestconfig, shape, layout):
    torch.manual_seed(sum(shape))
    device = pytestconfig.getoption("--device")
    hidden, out = 1 + sum(shape) % 50, 1 + 7 * shape[2] % 40
    x, *rest = operands(device, torch.float32, shape, hidden, out, 3)
    check_op(fused, plain, [in_layout(x, layout), *rest], grad_layout=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_and_widths_of_whole_blocks(backend, device, threads, dtype):
    """C++ kernels read such maps in place; products are so deep that they add up in parts."""
    if backend != "cpu":
        pytest.skip("of the C++ kernels")
    x, *rest = operands(device, dtype, (2, 48, 11, 24), 150, 144, 3)
    check_op(fused, plain, [in_layout(x, "channels_last"), *rest], grad_layout="channels_last")


IN_TILES = [  # (B, C, H, W), hidden channels, output channels
    ((1, 32, 1, 1), 64, 32),
    ((2, 64, 3, 5), 256, 64),
    ((1, 48, 6, 17), 96, 16),
    ((1, 16, 9, 33), 288, 48),
    ((1, 256, 5, 16), 48, 32),
]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", IN_TILES, ids=str)
def test_products_in_tiles(backend, device, threads, case, layout):
    """Depths that are multiples of 32, which tiles of AMX take, and that are not; few pixels."""
    if backend != "cpu":
        pytest.skip("of the C++ kernels")
    x, *rest = operands(device, torch.bfloat16, *case, 3)
    check_op(fused, plain, [in_layout(x, layout), *rest], grad_layout=layout)


def test_products_without_tiles(backend):
    """ATTNOPS_ISA=avx512 leaves AMX out, which is settled once a process."""
    if backend != "cpu":
        pytest.skip("of the C++ kernels")
    options = ["-q", "-p", "no:cacheprovider", "--only-backend", "cpu", "-k"]
    choice = "in_tiles or (agrees_with_float64 and bfloat16)"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, choice, __file__],
        env={**os.environ, "ATTNOPS_ISA": "avx512", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-6000:]


@pytest.mark.parametrize("shape", [(2, 9, 30, 33), (1, 24, 3, 70)], ids=str)
def test_threads_do_not_matter(backend, device, threads, shape):
    inputs = operands(device, torch.float32, shape, 40, 9, 3)
    check_op(fused, plain, inputs)
    harness.check_runs_are_bit_equal(fused, inputs)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_and_infinity_propagate(backend, device, layout):
    """What they reach is not finite, and nothing else is touched."""
    inputs = operands(device, torch.float32, (1, 3, 12, 20), 17, 4, 3)
    clean = fused(*inputs)
    inputs[0][0, 0, 4, 5], inputs[0][0, 1, 9, 19] = torch.nan, torch.inf
    out = fused(in_layout(inputs[0], layout), *inputs[1:])
    reached = torch.zeros(1, 1, 12, 20, dtype=torch.bool, device=device)
    reached[..., 3:6, 4:7] = reached[..., 8:11, 18:20] = True
    assert not out.masked_select(reached).isfinite().any()
    torch.testing.assert_close(out.masked_select(~reached), clean.masked_select(~reached))


@pytest.mark.parametrize("dims", [(0, 4, 5, 6), (2, 4, 0, 6)], ids=str)
def test_empty(backend, device, dims):
    out = (dims[0], 7, *dims[2:])
    harness.check_empty(fused, operands(device, torch.float32, dims, 9, 7, 3), out)


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", ""])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(backend, device, layout, with_bias):
    x, *tensors = operands(device, torch.float32, (2, 4, 5, 6), 8, 3, 3)
    x, *tensors = [t.requires_grad_() for t in (in_layout(x, layout), *tensors)]
    biases, biased = (tensors[3:], [0, 1, 2]) if with_bias else ([], [])
    op = torch.ops.attnops.feed_forward.default
    torch.library.opcheck(op, (x, tensors[:3], biases, biased))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(backend, device, layout):
    skip_unsupported(backend, torch.float64, OP)
    x, *rest = operands(device, torch.float64, (1, 2, 4, 5), 3, 2, 3)
    leaves = [t.requires_grad_() for t in (in_layout(x, layout), *rest)]
    assert torch.autograd.gradcheck(fused, leaves)


@pytest.mark.inductor
def test_compiles_whole_with_dynamic_shapes(backend, device):
    x, *parameters = operands(device, torch.float32, (2, 5, 7, 9), 12, 6, 3)
    second = in_layout(torch.randn(3, 5, 12, 8, device=device), "channels_last")
    harness.check_compiles(fused, plain, [[x, *parameters], [second, *parameters]])


def test_exports_with_dynamic_shapes(backend, device):
    x, *parameters = operands(device, torch.float32, (2, 5, 7, 9), 12, 6, 3)
    harness.check_exports(
        fused, plain, (x, *parameters), (torch.randn(2, 5, 20, 11, device=device), *parameters)
    )


def test_autocast_computes_in_the_autocast_dtype(backend, device):
    harness.check_autocast(fused, operands(device, torch.float32, (1, 8, 6, 7), 16, 8, 3), backend)


@harness.bad_input(
    ({"x": None}, TypeError, "x must be a tensor, got NoneType"),
    ({"expand": torch.ones(6, 4, 1, 1).int()}, TypeError, "expand has dtype torch.int32"),
    ({"expand_bias": torch.ones(6).half()}, ValueError, "but expand_bias is torch.float16"),
    ({"expand_bias": torch.ones(4)}, ValueError, r"expand_bias must be \[6\], got \[4\]"),
    ({"depthwise_bias": torch.ones(4)}, ValueError, r"depthwise_bias must be \[6\], got \[4\]"),
    ({"contract_bias": torch.ones(6)}, ValueError, r"contract_bias must be \[4\], got \[6\]"),
    ({"x": torch.ones(4, 5, 6)}, ValueError, r"x must be \[B, C, H, W\]"),
    ({"expand": torch.ones(6, 5, 1, 1)}, ValueError, r"expand must be \[D, 4, 1, 1\]"),
    ({"depthwise": torch.ones(4, 1, 3, 3)}, ValueError, r"depthwise must be \[6, 1, kh, kw\]"),
    ({"depthwise": torch.ones(6, 1, 2, 3)}, ValueError, "depthwise must have odd sides.*2x3"),
    ({"contract": torch.ones(4, 5, 1, 1)}, ValueError, r"contract must be \[K, 6, 1, 1\]"),
    ({"contract": torch.ones(0, 6, 1, 1)}, ValueError, "at least one channel everywhere"),
)
def test_bad_input(change, error, message):
    arguments = {
        "x": torch.ones(2, 4, 5, 6),
        "expand": torch.ones(6, 4, 1, 1),
        "depthwise": torch.ones(6, 1, 3, 3),
        "contract": torch.ones(4, 6, 1, 1),
    }
    with pytest.raises(error, match=message):
        attnops.feed_forward(**(arguments | change))
