"""Options given as numpy's numbers, 0-d arrays or 0-d tensors mean what Python's numbers mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import attnops
from attnops._checks import check_flag, check_integer, check_integers, check_number, check_pair

WHOLE = [np.int64, np.int32, np.uint8, np.array, torch.tensor]
REAL = [np.float32, np.float64, np.float16, np.array, torch.tensor]
FLAGS = [np.bool_, np.array, torch.tensor]


def maps(*shape, count=3):
    torch.manual_seed(0)
    return torch.rand(count, 2, *shape).unbind()


def integer_calls():
    """Every place of the ops that takes integers, by name: a call of a conversion."""
    q, k, v = maps(4, 5, 6)
    scores = torch.randn(2, 4, 3, 3)
    target = torch.randint(4, (2, 6, 6))
    rows, bases = torch.rand(2, 4, 9), torch.rand(2, 4, 3)
    loss = attnops.upsample_cross_entropy
    return {
        "pyramid_pool sizes": lambda n: attnops.pyramid_pool(q, (n(1), n(3))),
        "pyramid_pool array": lambda n: attnops.pyramid_pool(q, np.array([n(1), n(3)])),
        "kernel_size": lambda n: attnops.local_attention(q, k, v, n(3)),
        "kernel_size pair": lambda n: attnops.local_attention(q, k, v, (n(3), n(5))),
        "dilation": lambda n: attnops.local_attention(q, k, v, 3, n(2)),
        "dilation pair": lambda n: attnops.local_attention(q, k, v, 3, [n(2), 1]),
        "steps": lambda n: attnops.nmf(rows, bases, n(2))[0],
        "groups": lambda n: attnops.group_attention(q, k, v, n(2)),
        "size": lambda n: attnops.upsample_argmax(scores, n(7)),
        "size pair": lambda n: attnops.upsample_argmax(scores, (n(7), n(5))),
        "size array": lambda n: attnops.upsample_argmax(scores, np.array([n(7), n(5)])),
        "ignore_index": lambda n: loss(scores, target, None, n(3)),
        "min_kept": lambda n: loss(scores, target, keep_threshold=0.2, min_kept=n(9)),
    }


def real_calls():
    q, k, v = maps(4, 5, 6)
    scores = torch.randn(2, 4, 3, 3)
    target = torch.randint(4, (2, 6, 6))
    rows, bases = torch.rand(2, 4, 9), torch.rand(2, 4, 3)
    anchors = torch.rand(2, 4, 7)
    return {
        "anchor scale": lambda f: attnops.anchor_attention(q, anchors, anchors, f(0.5)),
        "local scale": lambda f: attnops.local_attention(q, k, v, 3, scale=f(0.5)),
        "inv_t": lambda f: attnops.nmf(rows, bases, 1, f(0.5))[0],
        "eps": lambda f: attnops.nmf(rows, bases, 1, 1.0, f(0.25))[0],
        "input_weight": lambda f: attnops.upsample_gate(scores, q, input_weight=f(0.5)),
        "keep_threshold": lambda f: attnops.upsample_cross_entropy(
            scores, target, keep_threshold=f(0.5)
        ),
    }


def flag_calls():
    scores = torch.randn(2, 4, 3, 3)
    x = torch.randn(2, 4, 5, 6)
    target = torch.randint(4, (2, 6, 6))
    return {
        "argmax": lambda b: attnops.upsample_argmax(scores, 7, b(True)),
        "loss": lambda b: attnops.upsample_cross_entropy(scores, target, align_corners=b(True)),
        "merge": lambda b: attnops.merge_scales([x, scores], None, "mean", b(False)),
        "gate": lambda b: attnops.upsample_gate(scores, x, align_corners=b(True)),
        "gate first": lambda b: attnops.upsample_gate(scores, x, activation_first=b(True)),
    }


@pytest.mark.parametrize("kind", WHOLE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", integer_calls())
def test_integers(name, kind):
    call = integer_calls()[name]
    torch.testing.assert_close(call(kind), call(int), rtol=0, atol=0)


@pytest.mark.parametrize("kind", REAL, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", real_calls())
def test_reals(name, kind):
    call = real_calls()[name]
    torch.testing.assert_close(call(kind), call(float), rtol=0, atol=0)


@pytest.mark.parametrize("kind", FLAGS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", flag_calls())
def test_flags(name, kind):
    call = flag_calls()[name]
    torch.testing.assert_close(call(kind), call(bool), rtol=0, atol=0)


def test_integers_become_ints():
    for value in (5, np.int8(5), np.array(5), torch.tensor(5), np.uint64(5)):
        found = check_integer("op", "n", value)
        assert found == 5 and type(found) is int
    assert check_pair("op", "n", np.array([2, 3])) == [2, 3]
    assert check_integers("op", "n", torch.tensor([2, 3])) == [2, 3]


def test_reals_become_floats():
    for value in (2, 2.0, np.float16(2), np.int64(2), np.array(2.0), torch.tensor(2.0)):
        found = check_number("op", "x", value)
        assert found == 2.0 and type(found) is float
    assert check_flag("op", "b", np.bool_(True)) is True


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(True), np.array(True), torch.tensor(True), 5.0, np.float32(5), np.array([5]),
     torch.tensor(5.0), "5", None, [5], np.array("5"), 5j],
    ids=repr,
)  # fmt: skip
def test_no_integers(value):
    with pytest.raises(TypeError, match="op: n must be an integer, got"):
        check_integer("op", "n", value)


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(True), torch.tensor(False), "1", None, 1j, np.complex64(1), [1.0], np.ones(1)],
    ids=repr,
)
def test_no_reals(value):
    with pytest.raises(TypeError, match="op: x must be a number, got"):
        check_number("op", "x", value)


@pytest.mark.parametrize("value", [0, 1, np.int64(1), 1.0, None, "True", np.array(1)], ids=repr)
def test_no_flags(value):
    with pytest.raises(TypeError, match="op: b must be True or False, got"):
        check_flag("op", "b", value)


def test_bounds_name_what_was_given():
    with pytest.raises(ValueError, match="op: n must be at least 1, got 0"):
        check_integer("op", "n", np.int64(0), least=1)
    with pytest.raises(ValueError, match="op: n must not be negative, got -1"):
        check_integer("op", "n", np.int64(-1), least=0)
    with pytest.raises(ValueError, match=r"sizes must be at least 1, got 0 in \(3, 0\)"):
        attnops.pyramid_pool(torch.rand(1, 2, 3, 3), np.array([3, 0]))


def test_default_scale_under_jit_trace():
    """While tracing, sizes are 0-d tensors, and so is the default scale that comes from one."""

    def attend(q, k, v):
        return attnops.anchor_attention(q, k, v, scale=q.shape[1] ** -0.5)

    q, k, v = torch.rand(1, 4, 9), torch.rand(1, 4, 5), torch.rand(1, 4, 5)
    with pytest.warns(torch.jit.TracerWarning):
        traced = torch.jit.trace(attend, (q, k, v), check_trace=False)
    torch.testing.assert_close(traced(q, k, v), attend(q, k, v))


def module_calls():
    """Every module: built with converted numbers, and the inputs that it is called with."""
    nn = attnops.nn
    x, big = torch.randn(1, 16, 12, 12), torch.randn(1, 16, 48, 48)
    return {
        "NonLocal": (lambda n, f: nn.NonLocal(n(16), n(8)), [x]),
        "APNB": (lambda n, f: nn.APNB(n(16), n(8), n(8), sizes=(n(1), n(3)), dropout=f(0.5)), [x]),
        "AFNB": (
            lambda n, f: nn.AFNB(n(16), n(16), n(8), n(8), sizes=[n(1)], dropout=f(0.25)), [x, x],
        ),
        "LocalDistribution": (lambda n, f: nn.LocalDistribution(n(16), f(2.5)), [big]),
        "CGNL": (lambda n, f: nn.CGNL(n(16), n(8), n(4)), [x]),
        "GALDBlock": (lambda n, f: nn.GALDBlock(n(16), n(8), f(0.5)), [big]),
        "DynamicLocalDistribution": (
            lambda n, f: nn.DynamicLocalDistribution(n(16), (n(3), n(5)), n(2)), [x, x],
        ),
        "PyramidPooling": (lambda n, f: nn.PyramidPooling(n(16), n(8), (n(1), n(2))), [x]),
        "ASPP": (lambda n, f: nn.ASPP(n(16), n(8), n(8), (n(2), n(3))), [x]),
        "MSCA": (lambda n, f: nn.MSCA(n(16), n(3), [n(5), n(7)]), [x]),
        "Hamburger": (
            lambda n, f: nn.Hamburger(n(16), n(4), n(2), n(3), seed=n(7), norm_groups=n(4)), [x],
        ),
        "SqueezeAttention": (
            lambda n, f: nn.SqueezeAttention(n(16), n(8), n(4), n(2), pool_size=n(4)), [x],
        ),
        "ScaleAttention": (
            lambda n, f: nn.ScaleAttention(n(16), n(1), n(8), f(0.5)), [[x], [x[:, :3]]],
        ),
    }  # fmt: skip


@pytest.mark.parametrize(
    "kinds",
    [(np.int64, np.float32), (np.array, np.array), (torch.tensor, torch.tensor)],
    ids=["scalars", "arrays", "tensors"],
)
@pytest.mark.parametrize("name", module_calls())
def test_modules(name, kinds):
    """Built and working alike, and nothing of numpy stays in a module."""
    make, inputs = module_calls()[name]
    plain, built = make(int, float).eval(), make(*kinds).eval()
    built.load_state_dict(plain.state_dict())
    torch.testing.assert_close(built(*inputs), plain(*inputs))
    assert repr(built) == repr(plain)
    for one, other in zip(built.modules(), plain.modules(), strict=True):
        for key, value in vars(other).items():
            assert type(vars(one)[key]) is type(value), key
