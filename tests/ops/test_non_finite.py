"""NaN and infinity reach what they reach in PyTorch: outputs and gradients of every op.

They stand in the last elements, which the tails of vectorised loops handle. Convolutions
are apart: whether a zero of the padding times NaN is 0 or NaN, and what GELU makes of infinities,
differs among PyTorch's own.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from harness import in_layout
from torch.nn.functional import gelu, pad

import attnops
from attnops import reference

OP = "upsample_gate"  # the backends that run every op
VALUES = [torch.nan, torch.inf, -torch.inf]


def maps(*shapes):
    return [torch.randn(shape) for shape in shapes]


def losses(function):
    target = torch.randint(19, (1, 9, 13), generator=torch.Generator().manual_seed(0))
    return lambda logits: function(logits, target, reduction="none")


# Of every op: how to call it, and the shapes of its inputs.
CASES = {
    "pyramid_pool": (lambda f: f, [(1, 19, 7, 13)]),
    "pyramid_pool max": (lambda f: lambda x: f(x, reduce="max"), [(1, 19, 7, 13)]),
    "anchor_attention": (lambda f: f, [(1, 5, 7, 13), (1, 5, 11), (1, 19, 11)]),
    "local_attention": (lambda f: f, [(1, 5, 7, 13), (1, 5, 7, 13), (1, 19, 7, 13)]),
    "local_attention mask": (
        lambda f: lambda *maps: f(*maps, 3, 2, border="mask"),
        [(1, 5, 7, 13), (1, 5, 7, 13), (1, 19, 7, 13)],
    ),
    "nmf": (
        lambda f: lambda x, bases: f(x.abs(), bases.abs(), 2)[1],
        [(1, 19, 21), (1, 19, 5)],
    ),
    "group_attention": (lambda f: lambda *maps: f(*maps, 1), [(1, 19, 7, 13)] * 3),
    **{
        f"upsample_gate {activation}{' first' if first else ''}": (
            lambda f, a=activation, b=first: lambda x, z: f(z, x, a, b, "gate"),
            [(1, 19, 7, 13), (1, 19, 4, 5)],
        )
        for activation in ("sigmoid", "relu", "identity")
        for first in (False, True)
    },
    **{
        f"merge_scales {reduce}": (
            lambda f, r=reduce: lambda a, b, z: f([a, b], z, r) + 0 * z.sum(),
            [(1, 19, 7, 13), (1, 19, 4, 5), (1, 2, 7, 13)],
        )
        for reduce in ("attention", "mean", "max")
    },
    "upsample_cross_entropy": (losses, [(1, 19, 4, 5)]),
}


def poisoned(tensors, index, value):
    """Copies, the last element of one of them replaced."""
    found = [x.clone() for x in tensors]
    found[index].view(-1)[-1] = value
    return found


def outcome(function, inputs, grad):
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out, *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CASES)
def test_where_they_go(backend, name, layout):
    call, shapes = CASES[name]
    inputs = maps(*shapes)
    op = name.split()[0]
    fused, plain = call(getattr(attnops, op)), call(getattr(reference, op))
    grad = torch.randn_like(plain(*inputs))
    everything = [*inputs, grad]
    for index in range(len(everything)):
        for value in VALUES[: 2 if backend == "triton" else 3]:  # one infinity on the interpreter
            *given, incoming = poisoned(everything, index, value)
            arranged = [in_layout(x, layout) if x.dim() == 4 else x for x in given]
            found, expected = outcome(fused, arranged, incoming), outcome(plain, given, incoming)
            for i, (a, b) in enumerate(zip(found, expected, strict=True)):
                torch.testing.assert_close(
                    a, b, rtol=2e-3, atol=2e-3, equal_nan=True, check_stride=False,
                    msg=lambda m, i=i, v=value, k=index: f"{v} in {k}, result {i}: {m}",
                )  # fmt: skip


def convolve(x, weight, bias):
    """Depthwise, without padding: the sum over the neighbours in the map."""
    height, width = x.shape[2:]
    out = torch.zeros_like(x) + bias.view(-1, 1, 1)
    for i, j in product(*(range(side) for side in weight.shape[2:])):
        y, z = i - weight.shape[2] // 2, j - weight.shape[3] // 2
        top, left = max(0, -y), max(0, -z)
        bottom, right = min(height, height - y), min(width, width - z)
        part = (
            x[:, :, top + y : bottom + y, left + z : right + z]
            * weight[:, :, i, j, None, None][:, 0]
        )
        out = out + pad(part, (left, width - right, top, height - bottom))
    return out


def strip_conv(function):
    return lambda x, w, b, wh, bh, wv, bv: function(x, w, b, [((wh, bh), (wv, bv))])


def plain_strip_conv(x, w, b, wh, bh, wv, bv):
    local = convolve(x, w, b)
    return local + convolve(convolve(local, wh, bh), wv, bv)


def plain_depthwise_gelu(x, weight, bias):
    return gelu(convolve(x, weight, bias))


CONVOLUTIONS = {
    "strip_conv": (
        strip_conv,
        plain_strip_conv,
        [(1, 19, 7, 13), (19, 1, 3, 3), (19,), (19, 1, 1, 7), (19,), (19, 1, 7, 1), (19,)],
    ),
    "depthwise_gelu": (
        lambda f: f,
        plain_depthwise_gelu,
        [(1, 19, 7, 13), (19, 1, 3, 3), (19,)],
    ),
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_nan_in_convolutions(backend, op, layout):
    """None is lost; where one is more it comes of the padding, of the same channel."""
    call, plain, shapes = CONVOLUTIONS[op]
    fused = call(getattr(attnops, op))
    everything = maps(*shapes, shapes[0])
    for index in range(len(everything)):
        *given, incoming = poisoned(everything, index, torch.nan)
        arranged = [in_layout(x, layout) if x.dim() == 4 else x for x in given]
        found, expected = outcome(fused, arranged, incoming), outcome(plain, given, incoming)
        for a, b in zip(found, expected, strict=True):
            assert a.isnan()[b.isnan()].all()
            channels = 0 if a.shape[0] == 19 else 1
            assert not a.narrow(channels, 0, 18).isnan().any()
            torch.testing.assert_close(
                torch.where(a.isnan(), torch.nan, b), a, rtol=2e-3, atol=2e-3, equal_nan=True
            )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_nan_gate_of_relu_passes_the_gradient(backend, layout):
    """As PyTorch's ReLU does: it is the gate's gradient, a number, not NaN and not 0."""
    logits = torch.randn(1, 19, 2, 13)
    logits[0, -1, -1, -1] = torch.nan
    x, grad = torch.rand(1, 19, 2, 13) + 1, torch.rand(1, 19, 2, 13) + 1
    for first in (False, True):
        leaf = in_layout(logits, layout).requires_grad_()
        out = attnops.upsample_gate(leaf, in_layout(x, layout), "relu", first, "none")
        assert out.isnan().sum() == 1
        (found,) = torch.autograd.grad(out, leaf, grad)
        torch.testing.assert_close(found, torch.where(logits <= 0, 0, grad * x))
