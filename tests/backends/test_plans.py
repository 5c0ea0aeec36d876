"""Calls that look the same skip what was decided for the first ones, and give the same."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import pytest
import torch
from conftest import usable_backends
from op_calls import CALLS, TARGET, OpCall
from torch import Tensor

import attnops
from attnops import _dispatch
from attnops._op import plans, tape

OP = "local_attention"
ARGMAX = OpCall("upsample_argmax", ((2, 4, 2, 3),), lambda m, x: m.upsample_argmax(x, (5, 7)))
LOSS = OpCall(
    "upsample_cross_entropy",
    ((2, 4, 2, 3),),
    lambda m, x: m.upsample_cross_entropy(x, TARGET.to(x.device)),
)
OTHERS = {"upsample_argmax": ARGMAX, "loss without weights": LOSS}
SHAPE = (1, 4, 5, 7)
EVERY = [(name, "channels_last") for name in (*CALLS, *OTHERS)]
EVERY += [("strip_conv", "contiguous"), ("nmf", "contiguous"), ("merge_scales max", "contiguous")]
# Of those in Triton's interpreter, which take seconds each, the others are slow tests.
FAST = ("anchor_attention", "upsample_gate", "upsample_cross_entropy", *OTHERS)
CASES = [
    pytest.param(name, layout, library, marks=[pytest.mark.slow] * is_slow)
    for name, layout in EVERY
    for library in ("cpu", "triton", "cuda")
    # The C++ library leaves sums of losses to PyTorch.
    if library != "cpu" or (CALLS | OTHERS)[name].op != "upsample_cross_entropy"
    for is_slow in [library == "triton" and name not in FAST]
]


@pytest.fixture(autouse=True)
def planned(monkeypatch, device) -> Iterator[None]:
    """Plans serve GPUs; all but the launches themselves is the same on CPU tensors."""
    monkeypatch.setattr(plans, "DEVICES", {device.type})
    plans.forget()
    yield
    plans.forget()


@pytest.fixture
def ran(monkeypatch) -> list[tuple[str, str]]:
    """Backend and pass of every implementation that runs, which a plan does not."""
    seen: list[tuple[str, str]] = []

    def spy(function: Callable, event: tuple[str, str]) -> Callable:
        def run(*args):
            seen.append(event)
            return function(*args)

        return run

    for key, found in list(_dispatch._registry.implementations.items()):
        passes = spy(found.forward, (key[1], "forward")), spy(found.backward, (key[1], "backward"))
        spied = _dispatch.Implementation(*key, *passes, found.refuse)
        monkeypatch.setitem(_dispatch._registry.implementations, key, spied)
    return seen


def results(call: OpCall, tensors: list[Tensor]) -> list[Tensor | None]:
    """What a call gives, without gradients and with, and its gradients."""
    with torch.no_grad():
        plain = call.call(attnops, *tensors)
    if call is ARGMAX:
        return [plain]
    leaves = [x.requires_grad_() for x in tensors]
    out = call.call(attnops, *leaves)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device)
    grads = torch.autograd.grad(out, leaves, weights.view(out.shape), allow_unused=True)
    return [plain, out, *grads]


@pytest.mark.parametrize(("name", "layout", "library"), CASES)
def test_planned_calls_give_the_same(name, layout, library, device, ran, monkeypatch):
    call = (CALLS | OTHERS)[name]
    if library not in usable_backends(device.type, call.op):
        pytest.skip(f"{library} does not run here")

    def given(seed: int) -> list[Tensor]:
        return [x.to(device) for x in call.tensors(layout, seed=seed)]

    with attnops.use_backend(library):
        for seed in (0, 1):
            results(call, given(seed))
        ran.clear()
        found = results(call, given(2))
        assert ran == []
        monkeypatch.setattr(plans, "DEVICES", set())
        expected = results(call, given(2))
    assert len(ran) == (1 if call is ARGMAX else 3)
    for actual, wanted in zip(found, expected, strict=True):
        assert (actual is None) == (wanted is None)
        if wanted is not None:
            assert actual.stride() == wanted.stride() and actual.is_leaf == wanted.is_leaf
            assert torch.equal(actual, wanted)


def maps(device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator).to(device, dtype) for _ in range(3)]


def attend(q: Tensor, k: Tensor, v: Tensor, *options) -> Tensor:
    return attnops.local_attention(q, k, v, *(options or (3, 1)))


def unaligned(x: Tensor) -> Tensor:
    moved = x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    assert moved.data_ptr() % 16
    return moved


def shifted_value(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, unaligned(v))


def with_wide_value(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, torch.cat([v, v], dim=1))


def with_strided_key(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k.contiguous(memory_format=torch.channels_last), v)


def on_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with attnops.use_backend("reference"):
        return attend(q, k, v)


def in_deterministic_mode(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(not before, warn_only=True)
    try:
        return attend(q, k, v)
    finally:
        torch.use_deterministic_algorithms(before, warn_only=True)


def under_autocast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.autocast(q.device.type, torch.bfloat16):
        return attend(q, k, v).float()


def recorded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = attend(q.requires_grad_(), k, v)
    assert out.requires_grad
    return out.detach()


CHANGES = {
    "dtype": lambda q, k, v: attend(q.half(), k.half(), v.half()).float(),
    "shape": lambda q, k, v: attend(*(x[..., :6].contiguous() for x in (q, k, v))),
    "other shape": with_wide_value,
    "strides": with_strided_key,
    "alignment": shifted_value,
    "option": lambda q, k, v: attend(q, k, v, 3, 2),
    "border": lambda q, k, v: attend(q, k, v, 3, 1, 1.0, "mask"),
    "requires_grad": recorded,
    "backend": on_reference,
    "determinism": in_deterministic_mode,
    "autocast": under_autocast,
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_calls_are_not_taken_for_planned_ones(name, device, ran):
    for _ in range(3):
        attend(*maps(device))
    ran.clear()
    attend(*maps(device))
    assert ran == []
    change = CHANGES[name]
    for seed in range(3):
        found = change(*maps(device, seed=seed))
        if seed == 0:
            assert [event for _, event in ran] == ["forward"]
        plans.forget()
        with attnops.use_backend("reference"):
            expected = change(*maps(device, seed=seed))
        half = name in ("dtype", "autocast")
        torch.testing.assert_close(found, expected, atol=2e-2 if half else 1e-5, rtol=1e-5)


def test_a_tensor_given_twice_is_two_tensors(device):
    for _ in range(3):
        q, _, v = maps(device)
        attend(q, q, v)
    q, k, v = maps(device, seed=1)
    expected = attnops.reference.local_attention(q, k, v, 3, 1)
    torch.testing.assert_close(attend(q, k, v), expected, atol=1e-5, rtol=1e-5)


def test_values_of_tensors_that_are_options_count(device):
    x, bases = torch.rand(1, 5, 9, device=device), torch.rand(1, 5, 3, device=device)
    for inverse in (1.0, 1.0, 1.0, 4.0):
        found = attnops.nmf(x, bases, 2, torch.tensor(inverse))[1]
        expected = attnops.reference.nmf(x, bases, 2, inverse)[1]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_checks_still_refuse(device):
    for _ in range(3):
        attend(*maps(device))
    for wrong in (3.0, 2, "3"):
        with pytest.raises((TypeError, ValueError), match="kernel_size"):
            attend(*maps(device), wrong, 1)
    q, k, v = maps(device)
    with pytest.raises(ValueError, match="key"):
        attend(q, k[..., :4], v)
    with pytest.raises(ValueError, match="dtype"):
        attend(q, k.half(), v)


def test_gradients_keep_their_guards(device):
    for _ in range(3):
        q, k, v = (x.requires_grad_() for x in maps(device))
        attend(q, k, v).sum().backward()
    out = attend(q, k, v)
    (grad,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        grad.sum().backward()
    out = attend(q, k, v)
    with torch.no_grad():
        v.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_calls_on_another_than_the_current_device_are_not_planned(device, ran, monkeypatch):
    monkeypatch.setattr(plans, "_current_index", lambda device: 7)
    for _ in range(4):
        attend(*maps(device))
    assert len(ran) == 4 and not any(each._looks for each in plans._made)


def test_few_calls_are_kept(device, monkeypatch):
    monkeypatch.setattr(plans, "MOST", 4)
    made = [torch.ones(1, 2, 4, n, device=device) for n in range(4, 14)]
    for x in [*made, *made]:
        assert attnops.pyramid_pool(x, (1, 2)).eq(1).all()
        assert all(0 <= each._count <= 4 for each in plans._made)
        assert all(sum(map(len, e._looks.values())) == e._count for e in plans._made)


def test_graphs_are_traced_as_ever(device, ran):
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        given = maps(device, seed=seed)
        torch.testing.assert_close(compiled(*given), attend(*given))
    ran.clear()
    compiled(*maps(device))
    assert ran == []


def test_nothing_is_planned_where_launches_are_only_looked_at(monkeypatch):
    monkeypatch.undo()
    assert "cpu" not in plans.DEVICES
    for _ in range(3):
        attend(*maps(torch.device("cpu")))
    assert all(not each._looks for each in plans._made)


def doubled(arguments: list[int]) -> None:
    source, target, count = arguments
    values = (ctypes.c_float * count).from_address(source)
    (ctypes.c_float * count).from_address(target)[:] = [2 * value for value in values]


def twice_doubled(x: Tensor) -> tuple[Tensor, Tensor]:
    """4 x, as a view, and 2 x of its second half, by way of scratch and views."""
    half = x.numel() // 2
    scratch = x.new_empty(3, x.numel())
    other, out = x.new_empty(half), torch.empty_strided((2, half), (half, 1))
    for source, target in ((x, scratch[1]), (scratch[1], out), (x.flatten()[half:], other)):
        arguments = [source, target, target.numel()]
        doubled([source.data_ptr(), target.data_ptr(), target.numel()])
        tape.recorder().note_launch(doubled, arguments, takes_tensors=False)
    return out.view(x.shape), other


def test_a_tape_launches_on_addresses():
    with tape.recording([torch.zeros(2, 5)]) as noted:
        made = twice_doubled(noted.tensors[0])
        known = noted.plan(made)
    assert tape.recorder() is None
    x = torch.randn(2, 5)
    for _ in range(2):
        four, two = known([x], [x.data_ptr()])
        assert torch.equal(four, 4 * x) and torch.equal(two, 2 * x.flatten()[5:])
    assert four.data_ptr() != made[0].data_ptr()


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x + 1,
        lambda x: x.clone().add_(1),
        lambda x: x,
        lambda x: x.new_empty(8)[2:6],
        lambda x: x.new_zeros(3),
    ],
)
def test_what_is_no_launch_has_no_tape(step):
    with tape.recording([torch.zeros(2, 5)]) as noted:
        assert noted.plan((step(noted.tensors[0]),)) is None
