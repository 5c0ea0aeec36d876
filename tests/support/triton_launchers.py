"""The Triton launchers themselves, under the interpreter: run by test_triton_interpreter.py.

Not collected by name, since TRITON_INTERPRET has to be set before Triton is imported. The public
ops have tests of their own; here are the launchers' inner interface, all dtypes, and what only
these kernels do: padding, slabs, groups of batch items, splits, segments, tiles.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from harness import check_op, check_results
from recorded_launches import DTYPES, FLAGS, assert_compiled_ahead, in_layout
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

import attnops
from attnops import reference
from attnops.kernels import _cells, _interpreter_repairs
from attnops.kernels.anchor_attention import backward as anchor_attention_backward
from attnops.kernels.anchor_attention import forward as anchor_attention
from attnops.kernels.anchor_attention import partials, tiles
from attnops.kernels.aot import triton as aot_triton
from attnops.kernels.depthwise_gelu import three as depthwise_gelu_of_three
from attnops.kernels.feed_forward import backward as feed_forward_backward
from attnops.kernels.feed_forward import parameters as feed_forward_parameters
from attnops.kernels.feed_forward import tiles as feed_forward_tiles
from attnops.kernels.group_attention import backward as group_attention_backward
from attnops.kernels.group_attention import forward as group_attention
from attnops.kernels.local_attention import backward as local_attention_backward
from attnops.kernels.local_attention import forward as local_attention
from attnops.kernels.nmf import plan as nmf_plan
from attnops.kernels.strip_conv import plan as strip_plan
from attnops.kernels.upsample_cross_entropy import total as losses_total
from attnops.kernels.upsample_gate import backward as upsample_gate_backward
from attnops.kernels.upsample_gate import forward as upsample_gate

# anchor_attention


def plain_attention(query, key, value, bias, scale):
    scores = torch.einsum("bcn,bcs->bns", query, key) * scale
    if bias is not None:
        scores = scores + bias[:, None]
    return torch.einsum("bns,bcs->bcn", scores.softmax(2), value)


def attention_results(function, grad, query, key, value, bias, scale):
    """Output and gradients of a differentiable attention."""
    leaves = [t.detach().requires_grad_() for t in (query, key, value, bias) if t is not None]
    out = function(*leaves[:3], None if bias is None else leaves[3], scale)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def launched_attention(grad, query, key, value, bias, scale):
    assert anchor_attention.refuse(query, key, value, bias, scale) is None
    out, lse = anchor_attention.forward(query, key, value, bias, scale)
    found = anchor_attention_backward.backward(grad, query, key, value, bias, lse, scale)
    assert lse.dtype == torch.float32
    assert out.stride() == grad.stride() and found[0].stride() == query.stride()
    assert all(t.is_contiguous() for t in found[1:])
    return [out, *found[: 3 if bias is None else 4]]


def check_attention(
    dtype, inner, batch, key_channels, value_channels, positions, anchors, with_bias=True
):
    query = in_layout(torch.randn(batch, key_channels, positions).to(dtype), inner)
    grad = in_layout(torch.randn(batch, value_channels, positions).to(dtype), inner)
    key = torch.randn(batch, key_channels, anchors).to(dtype)
    value = torch.randn(batch, value_channels, anchors).to(dtype)
    bias = torch.randn(batch, anchors).to(dtype) if with_bias else None
    operands = (grad, query, key, value, bias)
    scale = key_channels**-0.5
    found = launched_attention(*operands, scale)
    assert all(actual.dtype == dtype for actual in found)
    inputs = [t for t in operands[1:] if t is not None]

    def definition(query, key, value, bias=None):
        return plain_attention(query, key, value, bias, scale)

    check_results(found, definition, inputs, grad)


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(2, 5, 7, 35, 110), (1, 40, 33, 35, 7), (1, 16, 24, 48, 1), (1, 24, 8, 40, 300)],
    ids=str,
)
def test_attention(shape, dtype, inner, launches):
    check_attention(dtype, inner, *shape)
    assert_compiled_ahead(launches)


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
def test_attention_without_bias(inner):
    check_attention(torch.float32, inner, 1, 9, 20, 70, 130, with_bias=False)


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "batch, positions", [(3, 30), (2, 700), (1, 513)], ids=["groups", "slabs", "last slab"]
)
def test_attention_in_slabs(batch, positions, dtype, inner, monkeypatch):
    """Scratch for two tiles only: the positions go through in several slabs or groups of items."""
    monkeypatch.setattr(anchor_attention_backward, "SLAB_ELEMENTS", 2 * 128 * 128)
    monkeypatch.setattr(partials, "MIN_SPLIT", 64)  # several splits as well
    check_attention(dtype, inner, batch, 6, 140, positions, 20)


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
def test_attention_tf32_variant(inner, launches, monkeypatch):
    """Other tiles, shown by products of whole factors: within the budget of float32."""
    monkeypatch.setattr(_interpreter_repairs, "_as_tf32", lambda values: values)
    monkeypatch.setattr(tiles, "precision_of", lambda *facts: "tf32")
    check_attention(torch.float32, inner, 1, 20, 36, 44, 110)
    assert all(launch.constants.get("PRECISION", "tf32") == "tf32" for _, launch in launches)
    assert_compiled_ahead(launches)


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
def test_attention_of_truncated_factors(inner, monkeypatch):
    """Tensor cores read 10 bits of a factor's mantissa: float32 stays within its budget."""
    create_dot = InterpreterBuilder.create_dot

    def truncated(x):
        bits = np.ascontiguousarray(x.data).view(np.uint32) & np.uint32(0xFFFFE000)
        return TensorHandle(bits.view(np.float32), x.dtype)

    def of_truncated(builder, a, b, *rest):
        return create_dot(builder, truncated(a), truncated(b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", of_truncated)
    check_attention(torch.float32, inner, 1, 300, 70, 150, 110)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_attention_spreads_nonfinite_values_no_further_than_pytorch(bad):
    query, grad = torch.randn(1, 4, 20), torch.randn(1, 6, 20)
    key, value = torch.randn(1, 4, 10), torch.randn(1, 6, 10)
    query[0, 1, 3] = bad
    grad[0, 2, 7] = bad
    found = launched_attention(grad, query, key, value, None, 0.5)
    wanted = attention_results(plain_attention, grad, query, key, value, None, 0.5)
    for actual, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(actual, expected, equal_nan=True)


def test_attention_padding_never_leaks():
    """Positions of the last tile that do not exist, with biases whose exponentials overflow."""
    query, grad = torch.zeros(1, 3, 5), torch.randn(1, 3, 5)
    key, value = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    bias = torch.tensor([[500.0, 480.0, -torch.inf, 500.0]])
    found = launched_attention(grad, query, key, value, bias, 1.0)
    wanted = attention_results(plain_attention, grad, query, key, value, bias, 1.0)
    for actual, expected in zip(found, wanted, strict=True):
        assert actual.isfinite().all()
        torch.testing.assert_close(actual, expected)


def test_attention_unaligned_storage(launches):
    """A query that starts at an odd element is copied, not read with assumed alignment."""
    storage = torch.randn(1 + 2 * 16 * 16)
    query = storage[1:].view(2, 16, 16)
    key, grad = torch.randn(2, 16, 12), torch.randn(2, 16, 16)
    found = launched_attention(grad, query, key, key, None, 0.25)
    wanted = attention_results(plain_attention, grad, query, key, key.clone(), None, 0.25)
    for actual, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(actual, expected)


def test_attention_refusals():
    query, key = torch.randn(1, 4, 6), torch.randn(1, 4, 600)
    assert "S=600" in anchor_attention.refuse(query, key, key, None, 1.0)
    wide = [query.double(), key[..., :8].double()]
    assert "float64" in anchor_attention.refuse(wide[0], wide[1], wide[1], None, 1.0)


# The ops of GALD: their values are tested through the public functions.


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gald_launches_are_compiled_ahead(dtype, inner, launches):
    shape = (1, 16, 2, 3)
    maps = [in_layout(torch.randn(shape).to(dtype), inner) for _ in range(4)]
    grad, query, key, value = maps
    # A window of every capacity; the large ones take long here.
    for kernel in ([3, 3], [5, 5], [7, 7], [9, 9], [15, 15])[: 2 if inner else 5]:
        options = (kernel, [1, 2], 0.5, False)
        assert local_attention.refuse(query, key, value, *options) is None
        _, lse = local_attention.forward(query, key, value, *options)
        local_attention_backward.backward(*maps, lse, *options)
    options = (1, False, 1, 1.0, False)
    small = in_layout(torch.randn(1, 16, 2, 2).to(dtype), inner)
    assert upsample_gate.refuse(query, small, *options) is None
    upsample_gate.forward(query, small, *options)
    upsample_gate_backward.backward(grad, query, small, *options)
    for groups in (1, 2, 16):
        assert group_attention.refuse(query, key, value, groups) is None
        _, affinity = group_attention.forward(query, key, value, groups)
        group_attention_backward.backward(*maps, affinity, groups)
    assert_compiled_ahead(launches)


def check_on_triton(function, definition, *inputs: Tensor) -> None:
    with attnops.use_backend("triton"):
        check_op(function, definition, inputs)


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
def test_gald_gate_of_split_cells(inner):
    """Cells of so many rows that several programs share one, forward and backward."""
    maps = [in_layout(torch.randn(1, 3, *size), inner) for size in ((37, 6), (2, 2))]
    for activation in ("sigmoid", "relu"):
        check_on_triton(
            lambda x, logits, a=activation: attnops.upsample_gate(logits, x, a),
            lambda x, logits, a=activation: reference.upsample_gate(logits, x, a),
            *maps,
        )


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
def test_gald_groups_in_splits(inner, monkeypatch):
    """Several programs a group, the last with fewer rows than a tile has."""
    monkeypatch.setattr(group_attention, "SPLIT", 2048)
    maps = [in_layout(torch.randn(1, 8, 40, 40) / 8, inner) for _ in range(3)]
    assert group_attention.groups_of(maps[0], 2).sizes[1] == 4
    check_on_triton(
        lambda *t: attnops.group_attention(*t, 2),
        lambda *t: reference.group_attention(*t, 2),
        *maps,
    )


def test_gald_refusals():
    x = torch.randn(1, 2, 3, 3)
    assert "17x17" in local_attention.refuse(x, x, x, [17, 17], [1, 1], 1.0, False)
    wide = x.double()
    assert "float64" in local_attention.refuse(wide, wide, wide, [3, 3], [1, 1], 1.0, False)
    assert "float64" in upsample_gate.refuse(wide, wide, 1, False, 1, 1.0, False)
    assert "float64" in group_attention.refuse(wide, wide, wide, 1)


# The ops of SegNeXt and those on score maps: their values are tested through the public functions.


def run_with_gradients(function, *tensors: Tensor) -> None:
    leaves = [t.requires_grad_() for t in tensors]
    with attnops.use_backend("triton"):
        out = function(*leaves)
        out = out[0] + out[1].sum() if isinstance(out, tuple) else out
        torch.autograd.grad(out.sum(), leaves)


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_segnext_launches_are_compiled_ahead(dtype, inner, launches, monkeypatch):
    monkeypatch.setattr(strip_plan, "FOR_THREADS", True)
    x = in_layout(torch.randn(1, 8, 5, 6).to(dtype), inner)
    local, bias = torch.randn(8, 1, 3, 3).to(dtype), torch.randn(8).to(dtype)
    run_with_gradients(attnops.depthwise_gelu, x, local, bias)

    def strip_conv(x, local, *strips):
        pairs = zip(strips[0::2], strips[1::2], strict=True)
        return attnops.strip_conv(x, local, None, [((r, None), (c, None)) for r, c in pairs])

    sides = [side for k in (7, 11, 21) for side in ((1, k), (k, 1))]
    for chosen in [(5, 5), *sides], [(3, 3), (1, 33), (33, 1)]:
        weights = [torch.randn(8, 1, *k).to(dtype) for k in chosen]
        run_with_gradients(strip_conv, x, *weights)
    for rank in (3, 17, 33):
        positive = in_layout(torch.rand(1, 8, 30).to(dtype), inner)
        bases = torch.rand(1, 8, rank).to(dtype)
        run_with_gradients(lambda x, bases: attnops.nmf(x, bases, steps=1), positive, bases)
    assert_compiled_ahead(launches)


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
def test_segnext_gelu_of_long_strips(inner, monkeypatch):
    """As large maps are cut: a program owns 16 rows, the last one fewer."""
    monkeypatch.setattr(depthwise_gelu_of_three, "ENOUGH", 1)
    x, bias = in_layout(torch.randn(1, 5, 19, 7), inner), torch.randn(5)
    inputs = x, torch.randn(5, 1, 3, 3) / 3, bias
    check_on_triton(attnops.depthwise_gelu, reference.depthwise_gelu, *inputs)


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
@pytest.mark.parametrize(
    ("dtype", "channels", "hidden", "sides"),
    [
        *((dtype, (8, 16), 72, (9, 20)) for dtype in (torch.float32, torch.bfloat16)),
        (torch.bfloat16, (136, 8), 40, (3, 4)),
    ],
    ids=str,
)
def test_segnext_feed_forward_in_blocks(
    dtype, channels, hidden, sides, inner, launches, monkeypatch
):
    """Several blocks of hidden channels in a program, splits of them, programs of several tiles."""
    for module in (feed_forward_tiles, feed_forward_parameters, feed_forward_backward):
        monkeypatch.setattr(module, "FOR_THREADS", True)
    monkeypatch.setattr(aot_triton, "all_cases", aot_triton.all_cases.__wrapped__)  # as compiled
    monkeypatch.setattr(feed_forward_tiles, "PROGRAMS", 3)
    monkeypatch.setattr(feed_forward_parameters, "PROGRAMS", 2)
    count, outputs = channels
    inputs = [
        in_layout(torch.randn(1, count, *sides), inner),
        torch.randn(hidden, count, 1, 1) / count**0.5,
        torch.randn(hidden, 1, 3, 3) / 3,
        torch.randn(outputs, hidden, 1, 1) / hidden**0.5,
        *(torch.randn(size) / 2 for size in (hidden, hidden, outputs)),
    ]
    inputs = [t.to(dtype) for t in inputs]
    check_on_triton(attnops.feed_forward, reference.feed_forward, *inputs)
    assert_compiled_ahead(launches)


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_score_map_launches_are_compiled_ahead(dtype, inner, launches, monkeypatch):
    monkeypatch.setattr(_cells, "FOR_THREADS", True)
    maps = [in_layout(torch.randn(1, 5, n, n).to(dtype), inner) for n in (3, 5)]
    weights = in_layout(torch.randn(1, 2, 6, 7).to(dtype), inner)
    run_with_gradients(lambda *t: attnops.merge_scales(t[:2], t[2]), *maps, weights)
    run_with_gradients(lambda *t: attnops.merge_scales(t[:1], None, "mean") + t[1].sum(), *maps)
    run_with_gradients(lambda *t: attnops.merge_scales((*t, *t), None, "max"), *maps)
    target = torch.randint(5, (1, 9, 8))
    run_with_gradients(lambda x: attnops.upsample_cross_entropy(x, target), maps[0])
    with attnops.use_backend("triton"):
        attnops.upsample_argmax(maps[0], (9, 8))
    assert_compiled_ahead(launches)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("divisor", [0.0, 1.0, 7.0])
def test_score_map_means_of_many_programs(dtype, divisor, launches):
    """More partial sums than are read at a time: the last ones are there, and nothing behind."""
    partials = torch.rand(2, 2501) - 0.25
    losses, weights = partials.double().sum(dim=1)
    loss, share = torch.empty((), dtype=dtype), torch.empty(())
    losses_total.reduce_losses(partials, loss, share, divisor)
    expected = divisor or weights.item()
    torch.testing.assert_close(share.item(), 1 / expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss, (losses / expected).to(dtype))
    assert_compiled_ahead(launches)


@pytest.mark.parametrize(
    "dtype, inner, small, positions, rank",
    [
        (torch.float32, False, False, 78, 5),
        (torch.float32, True, True, 78, 20),
        (torch.float16, True, False, 78, 8),
        (torch.bfloat16, False, True, 80, 24),
        (torch.float32, False, False, 78, 70),
    ],
)
def test_nmf_in_splits_of_many_tiles(dtype, inner, small, positions, rank, monkeypatch, launches):
    """Few splits, so that a program owns several tiles; aligned rows and others, all shapes."""
    x = in_layout(torch.rand(2, 8, positions).to(dtype), inner)
    bases = torch.rand(2, 8, rank).to(dtype)
    monkeypatch.setattr(nmf_plan, "UNITS", 4)
    monkeypatch.setattr(nmf_plan, "is_small", lambda like: small)

    def results(backend):
        with attnops.use_backend(backend):
            leaves = [t.detach().requires_grad_() for t in (x, bases)]
            found, coef = attnops.nmf(*leaves, steps=2)
            grads = torch.autograd.grad(found.sum() + coef.square().sum(), leaves)
            return [t.detach().float() for t in (found, coef, *grads)]

    found = results("triton")
    x, bases = x.float(), bases.float()
    allowed = 1e-4 if dtype == torch.float32 else 2e-2
    for actual, wanted in zip(found, results("reference"), strict=True):
        torch.testing.assert_close(
            actual, wanted, rtol=allowed, atol=allowed * wanted.abs().max().item()
        )
    assert_compiled_ahead(launches)
