"""The choice of backends: forced, automatic, across threads, in compiled and exported graphs."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import attnops
from attnops import _dispatch
from attnops._op import plans

OP = "pyramid_pool"


@pytest.fixture
def calls(monkeypatch):
    """Record (backend, "forward" | "backward") of every run of pyramid_pool."""
    monkeypatch.setattr(plans, "DEVICES", set())  # they would run instead
    seen = []
    for (op, backend), implementation in list(_dispatch._registry.implementations.items()):
        if op != OP:
            continue

        def spy(function, event):
            def run(*args):
                seen.append(event)
                return function(*args)

            return run

        spied = _dispatch.Implementation(
            op,
            backend,
            spy(implementation.forward, (backend, "forward")),
            spy(implementation.backward, (backend, "backward")),
            implementation.refuse,
        )
        monkeypatch.setitem(_dispatch._registry.implementations, (op, backend), spied)
    return seen


@pytest.fixture
def x(device):
    return torch.randn(2, 3, 6, 7, device=device, requires_grad=True)


def other_than_reference(device) -> str:
    for backend in _dispatch.PREFERENCE[device.type]:
        if attnops.backends()[OP][backend]:
            return backend
    raise AssertionError


def test_forced_backend_runs(calls, x):
    with attnops.use_backend("reference"):
        attnops.pyramid_pool(x)
    assert calls == [("reference", "forward")]


def test_backward_runs_where_the_forward_ran(calls, x, device):
    with attnops.use_backend("reference"):
        forced = attnops.pyramid_pool(x)
    automatic = attnops.pyramid_pool(x)
    with attnops.use_backend("reference"):
        automatic.sum().backward()
    forced.sum().backward()
    best = other_than_reference(device)
    assert calls == [
        ("reference", "forward"),
        (best, "forward"),
        (best, "backward"),
        ("reference", "backward"),
    ]


def test_backward_on_another_thread(calls, x):
    with attnops.use_backend("reference"):
        out = attnops.pyramid_pool(x)
    thread = threading.Thread(target=lambda: out.sum().backward())
    thread.start()
    thread.join()
    assert calls == [("reference", "forward"), ("reference", "backward")]


def test_the_process_s_choice_holds_on_other_threads(calls, x):
    attnops.use_backend("reference")
    thread = threading.Thread(target=attnops.pyramid_pool, args=(x,))
    thread.start()
    thread.join()
    attnops.use_backend("auto")
    assert calls == [("reference", "forward")]


def test_compiled_graph_obeys_a_later_choice(calls, x, device):
    compiled = torch.compile(
        lambda x: attnops.pyramid_pool(x, (1, 2)).exp(), fullgraph=True, backend="aot_eager"
    )
    compiled(x)
    with attnops.use_backend("reference"):
        out = compiled(x)
    out.sum().backward()
    best = other_than_reference(device)
    assert calls == [(best, "forward"), ("reference", "forward"), ("reference", "backward")]


def test_exported_graph_obeys_a_later_choice(calls, x):
    class Pool(torch.nn.Module):
        def forward(self, x):
            return attnops.pyramid_pool(x)

    program = torch.export.export(Pool(), (x,)).module()
    del calls[:]
    with attnops.use_backend("reference"):
        program(x)
    assert calls == [("reference", "forward")]


def test_switching_inside_a_compiled_function_has_no_effect(calls, x, device):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def pool(x):
        with attnops.use_backend("reference"):
            return attnops.pyramid_pool(x)

    pool(x)
    assert calls == [(other_than_reference(device), "forward")]
    assert _dispatch.current_backend() == "auto"


def test_recomputation_in_checkpointing(calls, x):
    from torch.utils.checkpoint import checkpoint

    with attnops.use_backend("reference"):
        out = checkpoint(lambda x: attnops.pyramid_pool(x).exp(), x, use_reentrant=False)
        out.sum().backward()
    assert {backend for backend, _ in calls} == {"reference"}


def test_forcing_an_impossible_backend_gives_the_reason(x, device):
    impossible = "cuda" if device.type == "cpu" else "cpu"
    with (
        attnops.use_backend(impossible),
        pytest.raises(attnops.BackendError, match=f"'{impossible}' is forced.*: .+"),
    ):
        attnops.pyramid_pool(x)


def test_backends_lists_every_op_with_reasons():
    listed = attnops.backends()
    assert set(listed) == set(attnops.reference.__all__)
    for row in listed.values():
        assert list(row) == ["reference", "cpu", "triton", "cuda"]
        assert row["reference"].available
        for availability in row.values():
            assert availability.available or availability.reason


def test_falling_back_is_said_once(caplog, device):
    _dispatch._registry.said.clear()
    query = torch.randn(1, 2, 4, device=device)
    anchors = torch.randn(1, 2, 600, device=device)
    with caplog.at_level(logging.DEBUG, logger="attnops"):
        attnops.anchor_attention(query, anchors, anchors)
        first = len(caplog.records)
        attnops.anchor_attention(query, anchors, anchors)
    assert first >= 1
    assert len(caplog.records) == first
    assert all(record.levelno == logging.DEBUG for record in caplog.records)
    assert "anchor_attention: not on backend" in caplog.text


@pytest.mark.parametrize("op", ["pyramid_pool", "anchor_attention"])
def test_double_backward_is_refused(op, x):
    if op == "pyramid_pool":
        out = attnops.pyramid_pool(x)
    else:
        anchors = torch.randn(2, 3, 5, device=x.device)
        out = attnops.anchor_attention(x, anchors, anchors)
    (grad,) = torch.autograd.grad(out.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=f"attnops.{op}: double backward is not implemented"):
        grad.sum().backward()


def test_registering_unknown_names_is_refused():
    arguments = {"forward": None, "backward": None, "refuse": None}
    with pytest.raises(ValueError, match="unknown op 'pool'"):
        _dispatch.register("pool", "cpu", **arguments)
    with pytest.raises(ValueError, match="unknown backend 'gpu'"):
        _dispatch.register("pyramid_pool", "gpu", **arguments)


def test_meta_tensors_give_shapes():
    x = torch.ones(1, 2, 5, 5, device="meta")
    anchors = attnops.pyramid_pool(x)
    assert anchors.shape == (1, 2, 110)
    out = attnops.anchor_attention(x, anchors, anchors)
    assert out.device.type == "meta"
    assert out.shape == x.shape


def test_calls_that_nothing_watches_skip_the_dispatcher():
    """The registered op is called where something may look on, and only there."""
    x = torch.ones(1, 2, 4, 4)
    seen = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    expected = attnops.pyramid_pool(x)
    with Watching():
        torch.testing.assert_close(attnops.pyramid_pool(x), expected)
    assert any("attnops.pyramid_pool" in name for name in seen)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        attnops.pyramid_pool(x)
    assert any(event.key == "attnops::pyramid_pool" for event in found.key_averages())
    negative = torch._neg_view(x)  # a key that the dispatcher resolves
    torch.testing.assert_close(attnops.pyramid_pool(negative), -expected)
    assert attnops.pyramid_pool(x.requires_grad_()).requires_grad
    with torch.no_grad():
        assert not attnops.pyramid_pool(x).requires_grad
    with torch.inference_mode():
        assert attnops.pyramid_pool(x.detach()).is_inference()


def test_launches_find_their_compiled_kernel_by_all_that_it_depends_on(monkeypatch):
    """Equal kinds of arguments are launched directly; others go through Triton."""
    pytest.importorskip("triton")
    from attnops.kernels import _launch

    launched, compiled = [], []

    class Kernel:
        params = tuple(SimpleNamespace(name=n, default=0) for n in ("p_x", "n", "BLOCK", "FLAG"))

        def __getitem__(self, grid):
            def start(*args, **constants):
                compiled.append((grid, args, constants))
                return Compiled()

            return start

    class Compiled:
        def __getitem__(self, grid):
            return lambda *args: launched.append((grid, args))

    driver = SimpleNamespace(active=SimpleNamespace(get_current_device=lambda: 0))
    monkeypatch.setattr(_launch, "INTERPRETED", False)
    monkeypatch.setattr(_launch.triton.runtime, "driver", driver)
    kernel, x = Kernel(), torch.ones(8)
    for block in (32, 64):
        launch = _launch.Launch({"FLAG": True, "BLOCK": block}, 4)
        for n in (16, 32, 48, 17, 19, 1, 2**40):
            _launch.run(kernel, n % 7, x, n, launch=launch)
    assert [args[1] for _, args, _ in compiled] == 2 * [16, 17, 1, 2**40]
    assert [(grid, args[1:]) for grid, args in launched] == [
        ((n % 7, 1, 1), (n, block, True)) for block in (32, 64) for n in (32, 48, 19)
    ]
    before = len(compiled)
    _launch.run(kernel, 1, x, True, launch=launch)
    _launch.run(kernel, 1, x[1:], 16, launch=launch)  # not on 16 bytes
    _launch.run(kernel, 1, x.half(), 16, launch=launch)
    assert len(compiled) == before + 3


def test_absent_biases_have_no_gradient():
    """Recorded directly, with lists of tensors and of what is none."""
    x = torch.rand(1, 2, 5, 5, requires_grad=True)
    weights = [torch.rand(2, 1, *k, requires_grad=True) for k in ((3, 3), (1, 3), (3, 1))]
    local, row, column = ((weight, None) for weight in weights)
    found = attnops.strip_conv(x, *local, [(row, column)])
    expected = attnops.reference.strip_conv(x, *local, [(row, column)])
    torch.testing.assert_close(found, expected)
    leaves = [x, *weights]
    gradients = (torch.autograd.grad(y.square().sum(), leaves) for y in (found, expected))
    torch.testing.assert_close(*gradients)
