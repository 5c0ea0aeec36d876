"""In half precision the ops round once, at the end: nothing on the way is kept in fewer bits.

The error budget of the other tests is PyTorch's, which rounds after every step; a kernel with
scratch in half precision would pass it. Every result here is the float64 one rounded once, element
by element.
"""

from __future__ import annotations

import pytest
import torch
from conftest import usable_backends
from harness import in_layout
from torch import Tensor

import attnops
from attnops import reference

OP = "every op but those that multiply matrices"
FORMS = ((torch.float16, "contiguous"), (torch.bfloat16, "channels_last"))
BACKENDS = ("cpu", "triton", "cuda")
LABELS = torch.randint(5, (2, 9, 11), generator=torch.Generator().manual_seed(0))


def strips(ops, x, w, b, *pairs):
    """Three strips, the numbers of the published gate, shorter."""
    rows, columns = pairs[0::2], pairs[1::2]
    strips = [((h, None), (v, None)) for h, v in zip(rows, columns, strict=True)]
    return ops.strip_conv(x, w, b, strips)


# op and options -> call of the op, or of its reference, and the shapes of its tensors
CALLS = {
    "strip_conv": (
        strips,
        [(2, 5, 9, 11), (5, 1, 5, 5), (5,)]
        + [(5, 1, *k) for n in (3, 5, 7) for k in ((1, n), (n, 1))],
    ),
    "depthwise_gelu": (
        lambda ops, *t: ops.depthwise_gelu(*t),
        [(2, 5, 9, 11), (5, 1, 5, 5), (5,)],
    ),
    "upsample_gate": (lambda ops, *t: ops.upsample_gate(*t), [(2, 5, 4, 3), (2, 5, 9, 11)]),
    "merge_scales": (
        lambda ops, a, b, w: ops.merge_scales([a, b], w),
        [(2, 5, 4, 3), (2, 5, 9, 11), (2, 2, 9, 11)],
    ),
    "upsample_gate relu first": (
        lambda ops, *t: ops.upsample_gate(*t, "relu", True, "gate", align_corners=True),
        [(2, 5, 4, 3), (2, 5, 9, 11)],
    ),
    "merge_scales mean": (
        lambda ops, *t: ops.merge_scales(t, None, "mean"),
        [(2, 5, 9, 11), (2, 5, 4, 3)],
    ),
    "merge_scales max": (
        lambda ops, *t: ops.merge_scales(t, None, "max"),
        [(2, 5, 9, 11), (2, 5, 4, 3)],
    ),
    "group_attention": (lambda ops, *t: ops.group_attention(*t, 3), [(2, 6, 9, 11)] * 3),
    "pyramid_pool": (lambda ops, x: ops.pyramid_pool(x), [(2, 5, 9, 11)]),
    "pyramid_pool max": (lambda ops, x: ops.pyramid_pool(x, reduce="max"), [(2, 5, 9, 11)]),
    "local_attention": (
        lambda ops, *t: ops.local_attention(*t, 3, 2, 0.3),
        [(2, 6, 9, 11), (2, 6, 9, 11), (2, 5, 9, 11)],
    ),
    "upsample_cross_entropy": (
        lambda ops, x: ops.upsample_cross_entropy(x, LABELS.to(x.device), reduction="none"),
        [(2, 5, 4, 3)],
    ),
}


def results(call, ops, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = call(ops, *leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def roundings_beyond_one(found: Tensor, wanted: Tensor) -> float:
    """The largest error beyond half a unit in the last place of the value, in units of the tensor's
    largest value.
    """
    info = torch.finfo(found.dtype)
    half_unit = (wanted.abs() * info.eps / 2).clamp(min=info.smallest_normal * info.eps / 2)
    beyond = ((found.double() - wanted).abs() - half_unit).clamp(min=0)
    return (beyond.max() / (info.eps * wanted.abs().max())).item()


@pytest.mark.parametrize(("dtype", "layout"), FORMS, ids=str)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("backend_name", BACKENDS)
def test_results_are_rounded_once(pytestconfig, device, backend_name, name, dtype, layout):
    op = name.split()[0]
    if backend_name not in usable_backends(pytestconfig.getoption("--device"), op):
        pytest.skip(f"{op} does not run on {backend_name} here")
    call, shapes = CALLS[name]
    inputs = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
    inputs = [in_layout(x, layout) if x.dim() == 4 else x for x in inputs]
    wide = [x.double() for x in inputs]
    grad = torch.randn_like(call(reference, *wide)).to(dtype)
    wanted = results(call, reference, wide, grad)
    with attnops.use_backend(backend_name):
        found = results(call, attnops, inputs, grad)
    for i, (actual, expected) in enumerate(zip(found, wanted, strict=True)):
        beyond = roundings_beyond_one(actual, expected)
        assert beyond < 0.02, f"result {i}: {beyond:.3f} roundings of the largest value"
