"""Whatever users do to saved tensors, gradients are right and run where they should."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from op_calls import CALLS, CallModule
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import offload_wrapper
from torch.utils.checkpoint import checkpoint

import attnops
from attnops import _dispatch
from attnops._op import plans

Hooks = Callable[[], AbstractContextManager[None]]


def _saved_to_bytes(tensor: Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensor.detach(), buffer)
    return buffer.getvalue()


HOOKS: dict[str, Hooks] = {
    "numpy": lambda: saved_tensors_hooks(lambda t: t.detach().numpy().copy(), torch.from_numpy),
    "pickle": lambda: saved_tensors_hooks(lambda t: pickle.dumps(t.detach()), pickle.loads),
    "clone": lambda: saved_tensors_hooks(
        lambda t: t.detach().clone(memory_format=torch.contiguous_format), lambda t: t
    ),
    "list": lambda: saved_tensors_hooks(
        lambda t: (t.tolist(), t.shape, t.dtype),
        lambda kept: torch.tensor(kept[0], dtype=kept[2]).reshape(kept[1]),
    ),
    "torch.save": lambda: saved_tensors_hooks(
        _saved_to_bytes, lambda kept: torch.load(io.BytesIO(kept))
    ),
    "save_on_cpu": lambda: save_on_cpu(pin_memory=torch.cuda.is_available()),
}
every_op = pytest.mark.parametrize("name", CALLS)
every_hook = pytest.mark.parametrize("hook", HOOKS)


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, str, str]]:
    """(op, backend, "forward" | "backward") of every run of an implementation."""
    monkeypatch.setattr(plans, "DEVICES", set())  # they would run instead
    seen = []

    def spy(implementation, event):
        function = getattr(implementation, event)

        def run(*args):
            seen.append((implementation.op, implementation.backend, event))
            return function(*args)

        return None if function is None else run

    registered = _dispatch._registry.implementations
    for key, found in list(registered.items()):
        forward, backward = spy(found, "forward"), spy(found, "backward")
        spied = _dispatch.Implementation(*key, forward, backward, found.refuse)
        monkeypatch.setitem(registered, key, spied)
    return seen


def leaves_of(name: str, device: torch.device) -> list[Tensor]:
    return [t.to(device).requires_grad_() for t in CALLS[name].tensors("channels_last")]


def gradients(name: str, leaves: list[Tensor], hooks: Hooks = nullcontext) -> list[Tensor | None]:
    with hooks():
        out = CALLS[name].call(attnops, *leaves)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).reshape(out.shape)
    return list(torch.autograd.grad(out, leaves, weights, allow_unused=True))


def leaves_and_gradients(
    name: str, hook: str, device: torch.device
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Arguments, and their gradients by the reference; skips where the hook cannot run."""
    if hook == "numpy" and device.type != "cpu":
        pytest.skip("numpy has no CUDA tensors")
    leaves = leaves_of(name, device)
    with attnops.use_backend("reference"):
        return leaves, gradients(name, leaves)


@every_hook
@every_op
def test_the_backward_runs_where_the_forward_ran(name, hook, calls, device):
    leaves, expected = leaves_and_gradients(name, hook, device)
    for forced in ("auto", "reference"):
        del calls[:]
        with attnops.use_backend(forced):
            found = gradients(name, leaves, HOOKS[hook])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        (_, forward, _), (_, backward, event) = calls
        assert (event, backward) == ("backward", forward)
        assert (forward == "reference") == (forced == "reference")


@every_op
def test_choices_after_the_forward_change_nothing(name, calls, device):
    leaves = leaves_of(name, device)
    with HOOKS["clone"](), attnops.use_backend("reference"):
        out = CALLS[name].call(attnops, *leaves)
    out.sum().backward()
    assert [backend for _, backend, _ in calls] == ["reference", "reference"]


@pytest.mark.parametrize("hook", ["numpy", "clone", "save_on_cpu"])
@every_op
def test_compiled_graphs_whose_trace_is_lost(name, hook, calls, device):
    """The backward runs on what would be chosen for the same input: never a crash."""
    leaves, expected = leaves_and_gradients(name, hook, device)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *t: CALLS[name].call(attnops, *t), backend="aot_eager", fullgraph=True
    )
    with HOOKS[hook]():
        out = compiled(*leaves)
    del calls[:]
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).reshape(out.shape)
    found = torch.autograd.grad(out, leaves, weights, allow_unused=True)
    torch.testing.assert_close(list(found), expected, rtol=1e-4, atol=1e-5)
    best = _dispatch.PREFERENCE[device.type][0]
    assert [c[1:] for c in calls] == [(best, "backward")]


def lost_traces(name: str, leaves: list[Tensor]) -> Tensor:
    """The output of a compiled call, whose trace a hook replaced."""
    torch._dynamo.reset()
    with HOOKS["clone"]():
        return torch.compile(
            lambda *t: CALLS[name].call(attnops, *t), backend="aot_eager", fullgraph=True
        )(*leaves)


@pytest.mark.parametrize("name", ["pyramid_pool max", "nmf", "merge_scales max"])
def test_lost_traces_obey_the_choice_of_the_moment(name, calls, device):
    out = lost_traces(name, leaves_of(name, device))
    del calls[:]
    with attnops.use_backend("reference"):
        out.sum().backward()
    assert [c[1:] for c in calls] == [("reference", "backward")]


def test_lost_traces_run_although_a_forced_backend_cannot(calls, device):
    out = lost_traces("pyramid_pool", leaves_of("pyramid_pool", device))
    del calls[:]
    with attnops.use_backend("cuda" if device.type == "cpu" else "cpu"):
        out.sum().backward()
    assert [c[1:] for c in calls] == [(_dispatch.PREFERENCE[device.type][0], "backward")]


def test_compiled_graphs_keep_their_trace(calls, device):
    leaves = leaves_of("anchor_attention", device)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *t: CALLS["anchor_attention"].call(attnops, *t), backend="aot_eager", fullgraph=True
    )
    with attnops.use_backend("reference"):
        out = compiled(*leaves)
    out.sum().backward()
    assert [c[1:] for c in calls] == [("reference", "forward"), ("reference", "backward")]


@pytest.mark.parametrize(
    "candidates",
    [
        pytest.param(("reference", "cpu"), id="compiled"),
        pytest.param(("reference", "cpu", "triton", "cuda"), id="all", marks=pytest.mark.slow),
    ],
)
def test_every_pair_of_backends(candidates, device, monkeypatch):
    """What a forward keeps, every backend's backward understands: so a lost trace is no harm."""
    monkeypatch.setattr(_dispatch, "implementation_of", lambda op, code: None)
    for name, call in CALLS.items():
        leaves = leaves_of(name, device)
        usable = [b for b in candidates if attnops.backends()[call.op][b]]
        usable = [b for b in usable if b != ("cuda" if device.type == "cpu" else "cpu")]
        with attnops.use_backend("reference"):
            expected = gradients(name, leaves)
        for forward in usable:
            with attnops.use_backend(forward):
                out = call.call(attnops, *leaves)
            weights = torch.linspace(-1, 1, out.numel(), device=device).reshape(out.shape)
            for backward in usable:
                with attnops.use_backend(backward):
                    found = torch.autograd.grad(
                        out, leaves, weights, allow_unused=True, retain_graph=True
                    )
                torch.testing.assert_close(list(found), expected, rtol=1e-3, atol=1e-4)


@every_op
def test_offload_wrapper(name, calls, device):
    leaves = leaves_of(name, device)
    expected = gradients(name, leaves)
    del calls[:]
    out = offload_wrapper(CallModule(name))(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), device=device).reshape(out.shape)
    found = torch.autograd.grad(out, leaves, weights, allow_unused=True)
    torch.testing.assert_close(list(found), expected)
    assert len({backend for _, backend, _ in calls}) == 1


@every_op
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(name, reentrant, calls, device):
    leaves = leaves_of(name, device)
    expected = gradients(name, leaves)
    del calls[:]
    with attnops.use_backend("reference"):
        out = checkpoint(CallModule(name), *leaves, use_reentrant=reentrant)
        weights = torch.linspace(-1, 1, out.numel(), device=device).reshape(out.shape)
        (out * weights).sum().backward()
    found = [t.grad for t in leaves]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert {backend for _, backend, _ in calls} == {"reference"}
