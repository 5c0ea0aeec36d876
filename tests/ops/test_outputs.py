"""What every op returns: tensors of their own, that may be changed in place."""

from __future__ import annotations

import pytest
import torch
from op_calls import CALLS, LAYOUTS
from torch import Tensor

import attnops


def usable(op: str, device: torch.device) -> list[str]:
    foreign = "cuda" if device.type == "cpu" else "cpu"
    return [b for b, state in attnops.backends()[op].items() if state and b != foreign]


every_op = pytest.mark.parametrize("name", CALLS)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def check_fresh(tensor: Tensor, inputs: list[Tensor], what: str) -> None:
    assert not tensor._is_view(), what
    assert tensor._base is None, what
    storages = {t.untyped_storage().data_ptr() for t in inputs}
    assert tensor.untyped_storage().data_ptr() not in storages, what


@every_layout
@every_op
def test_outputs_and_gradients_are_no_views(name, layout, device):
    for backend in usable(CALLS[name].op, device):
        for recorded in (True, False):
            inputs = [t.to(device) for t in CALLS[name].tensors(layout)]
            leaves = [t.requires_grad_(recorded) for t in inputs]
            with attnops.use_backend(backend):
                out = CALLS[name].call(attnops, *leaves)
            check_fresh(out, inputs, backend)
            if not recorded:
                out.add_(1)
                continue
            grads = torch.autograd.grad(out, leaves, torch.ones_like(out), allow_unused=True)
            for grad in grads:
                if grad is not None:
                    check_fresh(grad, inputs, backend)
            storages = [g.untyped_storage().data_ptr() for g in grads if g is not None]
            if name == "strip_conv":  # the gradients of other lists are views of one tensor
                assert len({*storages}) == len(storages), backend


@every_layout
@every_op
def test_outputs_may_be_changed_in_place(name, layout, device):
    """No op needs its output for its gradient, on whatever backend."""
    for backend in usable(CALLS[name].op, device):
        if backend == "triton" and device.type == "cpu":
            continue  # the interpreter takes seconds
        found = []
        for in_place in (True, False):
            leaves = [t.to(device).requires_grad_() for t in CALLS[name].tensors(layout)]
            with attnops.use_backend(backend):
                out = CALLS[name].call(attnops, *leaves)
            other = torch.linspace(-1, 1, out.numel(), device=device).reshape(out.shape)
            other = other.requires_grad_()
            out = out.mul_(other).relu_() if in_place else (out * other).relu()
            found.append(torch.autograd.grad(out.sum(), leaves, allow_unused=True))
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("leaf", [True, False])
def test_gradients_have_the_strides_of_their_weight(leaf, device):
    for name in ("depthwise_gelu", "strip_conv"):
        for backend in usable(name, device):
            tensors = [t.to(device).requires_grad_() for t in CALLS[name].tensors("channels_last")]
            with attnops.use_backend(backend):
                out = CALLS[name].call(attnops, *tensors)
            if leaf:
                out.sum().backward()
                grads = [t.grad for t in tensors]
            else:
                grads = torch.autograd.grad(out.sum(), tensors)
            for tensor, grad in zip(tensors, grads, strict=True):
                assert grad.stride() == tensor.stride(), (name, backend)


@every_layout
@every_op
def test_calls_leave_nothing_to_the_next(name, layout):
    """The C++ kernels keep their working memory for the next call, whatever is in it."""
    call = CALLS[name]
    if "cpu" not in usable(call.op, torch.device("cpu")):
        pytest.skip("the C++ library was not built")

    def run(inputs):
        leaves = [t.requires_grad_() for t in inputs]
        out = call.call(attnops, *leaves)
        grads = torch.autograd.grad(out, leaves, torch.ones_like(out), allow_unused=True)
        return [out, *(grad for grad in grads if grad is not None)]

    with attnops.use_backend("cpu"):
        before = run(call.tensors(layout))
        run([torch.full_like(t, torch.nan) for t in call.tensors(layout)])
        after = run(call.tensors(layout))
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)
