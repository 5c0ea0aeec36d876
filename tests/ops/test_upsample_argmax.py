"""`upsample_argmax` on every backend: the chosen class has the largest logit of float64."""

from __future__ import annotations

import harness
import pytest
import torch
from draws import booleans, drawn, layouts, shapes
from harness import DTYPES, LAYOUTS, in_layout, skip_unsupported
from torch.nn.functional import interpolate

import attnops
from attnops import reference

OP = "upsample_argmax"
CASES = [  # (B, K, h, w), (H, W)
    ((2, 7, 5, 6), (20, 24)),
    ((1, 150, 8, 8), (64, 64)),
    ((1, 19, 9, 7), (4, 5)),  # down
    ((1, 2, 1, 1), (6, 50)),
    ((1, 171, 3, 4), (3, 4)),
    ((2, 1, 4, 4), (9, 9)),
    ((1, 21, 6, 5), (1, 40)),
    ((1, 2, 1, 1), (1, 3)),  # fewer columns than one looks for known cells in
    ((1, 5, 4, 2), (7, 2)),
]


def check(logits, size, align_corners):
    labels = attnops.upsample_argmax(logits, size, align_corners)
    assert labels.dtype == torch.int64 and labels.is_contiguous()
    full = interpolate(logits.double(), size, mode="bilinear", align_corners=align_corners)
    assert labels.shape == (full.shape[0], *full.shape[2:])
    best, label = full.max(dim=1)
    chosen = full.gather(1, labels.unsqueeze(1)).squeeze(1)
    # A tie within the rounding of the float32 interpolation may go to either class.
    roundings = 64 if logits.dtype == torch.float64 else 8
    eps = torch.finfo(torch.float64 if logits.dtype == torch.float64 else torch.float32).eps
    rounding = roundings * eps * full.abs().max()
    assert (best - chosen).max() <= rounding
    tied = full >= (best - rounding)[:, None]
    clear = tied.sum(1) == 1
    assert torch.equal(labels[clear], label[clear])
    return labels, clear


@pytest.mark.parametrize("align_corners", [False, True], ids=["", "aligned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_chooses_the_largest(backend, device, case, dtype, align_corners):
    skip_unsupported(backend, dtype)
    shape, size = case
    logits = torch.randn(shape, device=device).to(dtype)
    (first, clear), (second, _) = (
        check(in_layout(logits, layout), size, align_corners)
        for layout in ("contiguous", "channels_last")
    )
    assert torch.equal(first[clear], second[clear])
    if dtype in (torch.float32, torch.float64):
        assert clear.all()


@pytest.mark.parametrize("align_corners", [False, True], ids=["", "aligned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_regions_of_one_class(backend, device, layout, dtype, align_corners):
    """Nearly all pixels lie between logits that agree about their class."""
    skip_unsupported(backend, dtype)
    regions = torch.randn(2, 19, 3, 2).repeat_interleave(4, 2).repeat_interleave(5, 3)
    logits = (regions + 0.1 * torch.randn(2, 19, 12, 10)).to(device, dtype)
    for size in ((96, 80), (50, 75)):
        labels, _ = check(in_layout(logits, layout), size, align_corners)
        flat = labels[:, 1:, 1:] == labels[:, :-1, :-1]
        assert len(labels.unique()) > 2 and flat.float().mean() > 0.8


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, device, layout):
    logits = torch.randn(2, 6, 7, 9, device=device)
    check(in_layout(logits, layout), (20, 30), False)


@drawn(
    60, shape=shapes(2, 40, 20, 20), size=shapes(60, 60), align_corners=booleans(), layout=layouts
)
def test_any_shape(pytestconfig, shape, size, align_corners, layout):
    torch.manual_seed(sum(shape))
    device = pytestconfig.getoption("--device")
    logits = torch.randn(shape, device=device)
    check(in_layout(logits, layout), size, align_corners)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_first_of_equal_classes_wins(backend, device, layout):
    logits = torch.randn(1, 9, 5, 6, device=device)
    logits[:, 3] = logits[:, 7] = logits.amax(1) + 1
    labels = attnops.upsample_argmax(in_layout(logits, layout), (23, 31))
    assert (labels == 3).all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_first_nan_wins(backend, device, layout):
    logits = torch.randn(1, 9, 5, 16, device=device)
    logits[0, 2, 1, 1] = logits[0, 5, 1, 1] = torch.inf
    logits[0, 4, 3, 9] = logits[0, 6, 3, 9] = torch.nan
    labels = attnops.upsample_argmax(in_layout(logits, layout), (20, 64))
    assert torch.equal(labels, reference.upsample_argmax(logits, (20, 64)))


def test_threads_do_not_matter(backend, device, threads):
    check(torch.randn(2, 11, 9, 13, device=device), (50, 61), False)


def test_empty_batch(backend, device):
    labels = attnops.upsample_argmax(torch.randn(0, 4, 5, 6, device=device), (10, 12))
    assert labels.shape == (0, 10, 12)


def test_one_number_for_both_sides_and_no_gradient(backend, device):
    logits = torch.randn(1, 4, 5, 6, device=device, requires_grad=True)
    labels = attnops.upsample_argmax(logits, 12)
    assert labels.shape == (1, 12, 12) and not labels.requires_grad


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(backend, device, layout):
    logits = in_layout(torch.randn(2, 4, 5, 6, device=device), layout)
    torch.library.opcheck(torch.ops.attnops.upsample_argmax.default, (logits, 10, 13, False))


@pytest.mark.inductor
def test_compiles_whole_with_dynamic_shapes(backend, device):
    def label(x):
        return attnops.upsample_argmax(x * 2, (4 * x.shape[2], 4 * x.shape[3])) + 1

    compiled = torch.compile(label, fullgraph=True, dynamic=True)
    for shape in ((2, 5, 7, 9), (3, 6, 12, 8)):
        x = torch.randn(shape, device=device)
        assert torch.equal(compiled(x), label(x))


def test_exports_with_dynamic_shapes(backend, device):
    class Label(torch.nn.Module):
        def forward(self, x):
            return attnops.upsample_argmax(x, (4 * x.shape[2], 4 * x.shape[3]))

    example = torch.randn(2, 5, 7, 9, device=device)
    program = torch.export.export(Label(), (example,), dynamic_shapes=(harness.DYNAMIC_SIDES,))
    x = torch.randn(2, 5, 20, 11, device=device)
    assert torch.equal(program.module()(x), Label()(x))


@harness.bad_input(
    ({"logits": None}, TypeError, "logits must be a tensor, got NoneType"),
    ({"logits": torch.ones(2, 4, 5, 6).int()}, TypeError, "logits has dtype torch.int32"),
    ({"logits": torch.ones(4, 5, 6)}, ValueError, r"logits must be \[B, K, h, w\]"),
    ({"logits": torch.ones(2, 0, 5, 6)}, ValueError, "logits are empty"),
    ({"size": (0, 4)}, ValueError, r"size must be at least 1, got \(0, 4\)"),
    ({"size": (1, 2, 3)}, TypeError, "size must be an integer or a pair"),
    ({"size": 2.0}, TypeError, "size must be an integer or a pair"),
    ({"align_corners": None}, TypeError, "align_corners must be True or False"),
)
def test_bad_input(change, error, message):
    arguments = {"logits": torch.ones(2, 4, 5, 6), "size": (10, 12)}
    with pytest.raises(error, match=message):
        attnops.upsample_argmax(**(arguments | change))
