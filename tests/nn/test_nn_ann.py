"""APNB, AFNB and NonLocal against the published blocks written out in plain PyTorch."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.utils.flop_counter
from harness import check_value, in_layout
from torch import nn
from torch.nn.functional import relu

import attnops
from attnops import reference
from attnops.benchmarks.apnb import cases as apnb_cases
from attnops.benchmarks.apnb import operations
from attnops.benchmarks.measure import memory
from attnops.nn import AFNB, APNB, NonLocal, _pointwise
from attnops.nn.functional import folding_saves, pointwise

OP = "anchor_attention"


def randomise(module: nn.Module) -> nn.Module:
    """Random weights and statistics: at initialisation the context is zero."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2)
    return module


def published(block: APNB | AFNB, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The authors' order of operations on the weights of `block`, every map written out.

    Project, pool, attend, project back; concatenate the context first; BatchNorm, then ReLU in
    APNB only.
    """
    core = block.attention

    def project(projection, x):
        y = projection.conv(x)
        return y if projection.bn is None else relu(projection.bn(y))

    def pool(x):
        return reference.pyramid_pool(x, core.sizes, core.reduce)

    key = project(core.key, low)
    query = key if core.query is None else project(core.query, high)
    value = key if core.value is None else core.value(low)
    channels = key.shape[1]
    scores = query.flatten(2).transpose(1, 2) @ pool(key) * channels**-0.5
    context = (scores.softmax(-1) @ pool(value).transpose(1, 2)).transpose(1, 2)
    context = core.out(context.reshape(*context.shape[:2], *high.shape[2:]))
    if block.fusion is None:
        return context
    y = block.fusion.bn(block.fusion.conv(torch.cat([context, high], 1)))
    return relu(y) if isinstance(block, APNB) else y


def compare(block, low, high, call):
    """Output, gradients and running statistics of `block` against `published`, in float64."""
    twin = copy.deepcopy(block)
    out, expected = call(block), published(twin, low, high)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    grad = torch.randn_like(out)
    inputs = [low] if low is high else [low, high]
    found = torch.autograd.grad(out, [*inputs, *block.parameters()], grad, allow_unused=True)
    wanted = torch.autograd.grad(expected, [*inputs, *twin.parameters()], grad, allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)
    for (name, a), (_, b) in zip(block.named_buffers(), twin.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


FORMS = list(itertools.product(("bn_relu", "linear"), ("mean", "max"), (True, False)))
WIDTHS = [  # in, key = value, out: the convolutions fold into the anchors, or do not
    pytest.param(6, 12, None, id="folds"),
    pytest.param(40, 3, 37, id="does-not-fold"),
]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("channels", "inner", "out"), WIDTHS)
@pytest.mark.parametrize("share", ["key_query", "key_value"])
@pytest.mark.parametrize(("projection", "reduce", "fuse"), FORMS)
def test_apnb(backend, device, projection, reduce, fuse, share, channels, inner, out, training):
    skip_float32_only(backend)
    block = APNB(channels, inner, inner, out, (1, 2, 3), reduce, share, projection, fuse, 0.0)
    block = randomise(block).to(device).double().train(training)
    x = torch.randn(2, channels, 9, 7, device=device, dtype=torch.float64, requires_grad=True)
    compare(block, x, x, lambda block: block(x))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("channels", "inner", "out"), WIDTHS)
@pytest.mark.parametrize(("projection", "reduce", "fuse"), FORMS)
def test_afnb(backend, device, projection, reduce, fuse, channels, inner, out, training):
    skip_float32_only(backend)
    block = AFNB(5, channels, inner, inner + 1, out, (1, 2, 3), reduce, projection, fuse, 0.0)
    block = randomise(block).to(device).double().train(training)
    low = torch.randn(2, 5, 11, 4, device=device, dtype=torch.float64, requires_grad=True)
    high = torch.randn(2, channels, 9, 7, device=device, dtype=torch.float64, requires_grad=True)
    compare(block, low, high, lambda block: block(low, high))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("projection", ["bn_relu", "linear"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_apnb_in_lower_precision(backend, device, layout, projection, dtype):
    block = randomise(APNB(48, 16, 16, projection=projection)).to(device).eval()
    x = torch.randn(2, 48, 15, 17, device=device)
    wide, wide_x = copy.deepcopy(block).double(), x.double()
    block, x = block.to(dtype), in_layout(x.to(dtype), layout)
    with torch.no_grad():
        out = block(x)
        check_value(out, published(block, x, x), lambda: published(wide, wide_x, wide_x))
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert out.is_contiguous(memory_format=memory_format)


def test_released_defaults_and_start():
    block = APNB(32)
    assert block.attention.query is None
    assert block.attention.key.bn is not None
    assert block.attention.sizes == (1, 3, 6, 8)
    assert block.fusion.dropout.p == 0.05
    x = torch.randn(1, 32, 8, 8)
    assert torch.equal(block.attention(x, x), torch.zeros_like(x))
    fusion = AFNB(16, 32)
    assert fusion.attention.query is not None
    assert fusion.attention.value is not None


def test_parameter_counts_are_the_published_ones():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(APNB(512)) == 920_576
    assert count(AFNB(1024, 2048)) == 9_971_456


def test_non_local_is_embedded_gaussian_attention(device):
    for share, projection in itertools.product(("key_query", "none"), ("linear", "bn_relu")):
        block = NonLocal(10, 6, 4, share=share, projection=projection)
        block = randomise(block).to(device).eval()
        x = torch.randn(2, 10, 5, 7, device=device)
        key, value = block.key(x).flatten(2), block.value(x).flatten(2)
        query = key if block.query is None else block.query(x).flatten(2)
        weights = (query.transpose(1, 2) @ key / 6**0.5).softmax(-1)
        context = (value @ weights.transpose(1, 2)).view(2, 6, 5, 7)
        torch.testing.assert_close(block(x), block.out(context), rtol=1e-4, atol=1e-5)


@pytest.mark.inductor
@pytest.mark.parametrize("projection", ["bn_relu", pytest.param("linear", marks=pytest.mark.slow)])
def test_apnb_compiles_whole_and_exports(backend, device, projection):
    block = randomise(APNB(12, 8, 8, projection=projection)).to(device).eval()
    x = torch.randn(2, 12, 14, 10, device=device)
    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch in (x, torch.randn(1, 12, 9, 21, device=device)):
            torch.testing.assert_close(compiled(batch), block(batch), rtol=1e-4, atol=1e-5)
    height, width = torch.export.Dim("height", min=2), torch.export.Dim("width", min=2)
    program = torch.export.export(block, (x,), dynamic_shapes=({2: height, 3: width},))
    other = torch.randn(2, 12, 30, 17, device=device)
    torch.testing.assert_close(program.module()(other), block(other), rtol=1e-4, atol=1e-5)


@pytest.mark.inductor
def test_apnb_trains_under_compile(backend, device):
    block = randomise(APNB(12, 8, 8, dropout=0.0)).to(device)
    twin = copy.deepcopy(block)
    x = torch.randn(2, 12, 14, 10, device=device, requires_grad=True)
    out = torch.compile(block, fullgraph=True)(x)
    expected = published(twin, x, x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, [x, *block.parameters()], grad)
    wanted = torch.autograd.grad(expected, [x, *twin.parameters()], grad)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_apnb_under_autocast(backend, device):
    block = randomise(APNB(12, 8, 8, dropout=0.0)).to(device)
    x = torch.randn(2, 12, 14, 10, device=device, requires_grad=True)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out = block(x)
        out.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("projection", ["bn_relu", "linear"])
def test_empty_batch(backend, device, projection):
    block = APNB(12, 8, 8, projection=projection).to(device).eval()
    assert block(torch.randn(0, 12, 9, 9, device=device)).shape == (0, 12, 9, 9)


def test_folding_counts_operations():
    arguments = {"once": 1000, "folded": 10, "unfolded": 20}
    assert not folding_saves(100, **arguments)
    assert folding_saves(101, **arguments)


def test_the_linear_block_never_projects_the_map(device):
    """S=110 is below 128 channels: everything folds, no convolution of the map is left."""
    block = APNB(256, 128, 128, projection="linear", fuse=False).to(device)

    x = torch.randn(1, 256, 48, 48, device=device)
    counter = torch.utils.flop_counter.FlopCounterMode(display=False)
    with counter, torch.no_grad():
        block(x)
    counts = counter.get_flop_counts()["Global"]
    beside = sum(n for op, n in counts.items() if "attnops" not in str(op))  # of the fused ops
    anchors, channels, inner = 110, 256, 128
    assert 0 < beside <= 2 * (4 * channels * inner + channels) * anchors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("affine", ["", "bias", "factor", "bias factor"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channel slice", "crop"])
def test_slabs_join_to_the_whole_product(monkeypatch, layout, affine, dtype):
    """4 slabs an item, the last one short."""
    monkeypatch.setattr(_pointwise, "_SLAB", 0)
    monkeypatch.setattr(_pointwise, "_SLAB_POSITIONS", 64)
    x = torch.randn(2, 12, 15, 17)
    if layout == "channel slice":
        x = in_layout(torch.randn(2, 20, 15, 17), "channels_last")[:, 3:15]
    elif layout == "crop":
        x = torch.randn(2, 12, 20, 20)[:, :, 2:17, 1:18]
    else:
        x = in_layout(x, layout)
    weight, bias, factor = torch.randn(7, 12, 1, 1), torch.randn(7), torch.randn(7)
    bias = bias if "bias" in affine else None
    factor = factor if "factor" in affine else None
    x, weight, bias, factor = (t if t is None else t.to(dtype) for t in (x, weight, bias, factor))
    with torch.no_grad():
        found = pointwise(x, weight, bias, factor)
    whole = pointwise(x, weight.clone().requires_grad_(), bias, factor).detach()
    assert found.stride() == whole.stride()

    def definition():
        wide = torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0].double(), x.double())
        if factor is not None:
            wide = wide * factor.double()[:, None, None]
        return wide if bias is None else wide + bias.double()[:, None, None]

    check_value(found, whole, definition)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_apnb_needs_little_more_than_its_projected_map(layout):
    """8 MiB of map; the products' buffers and the anchors have to do with 3."""
    if not attnops.backends()["anchor_attention"]["cpu"]:
        pytest.skip("the compiled CPU kernels are not here")
    block = operations.Block(128, 128, 1, channels=1024, hidden=128)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        use = memory.measure_cpu(
            apnb_cases.memory_case,
            timeout=100,
            name=apnb_cases.OURS_RELEASED,
            block=block,
            dtype=torch.float32,
            layout=layout,
            direction="forward",
            compile_modes=(),
        )
    except memory.MemoryUnknown as unknown:
        pytest.skip(str(unknown))
    finally:
        torch.set_num_threads(before)
    projected = 4 * block.batch * block.hidden * block.positions
    assert use.above_inputs_and_output <= projected + 3 * memory.MIB


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: APNB(8, share="all"), "share must be 'key_query' or 'key_value', got 'all'"),
        (lambda: APNB(8, projection="relu"), "projection must be 'bn_relu' or 'linear'"),
        (lambda: APNB(8, reduce="sum"), "reduce must be 'mean' or 'max'"),
        (lambda: APNB(8, 4, 5, share="key_value"), "needs key_channels == value_channels"),
        (lambda: APNB(8, sizes=()), "sizes is empty"),
        (lambda: APNB(8)(torch.ones(1, 9, 4, 4)), r"x must be \[B, 8, H, W\], got \[1, 9, 4, 4\]"),
        (lambda: APNB(8)(torch.ones(8, 4, 4)), r"x must be \[B, 8, H, W\], got \[8, 4, 4\]"),
        (
            lambda: AFNB(4, 8)(torch.ones(1, 4, 4, 4), torch.ones(2, 8, 4, 4)),
            "one batch size, got 1 and 2",
        ),
        (lambda: AFNB(4, 8)(torch.ones(1, 5, 4, 4), torch.ones(1, 8, 4, 4)), "low must be"),
        (lambda: NonLocal(8, share="all"), "share must be 'key_query' or 'none'"),
        (lambda: NonLocal(8)(torch.ones(1, 7, 4, 4)), r"x must be \[B, 8, H, W\]"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def skip_float32_only(backend: str) -> None:
    if backend == "triton":
        pytest.skip("the Triton kernels have no float64")


def test_state_dict_round_trip():
    block, other = randomise(APNB(8, 4, 4)), APNB(8, 4, 4)
    other.load_state_dict(block.state_dict())
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(block.eval()(x), other.eval()(x))


def test_modules_obey_the_backend_choice():
    block = randomise(APNB(8, 4, 4)).eval()
    x = torch.randn(1, 8, 15, 13)
    with attnops.use_backend("reference"):
        expected = block(x)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
