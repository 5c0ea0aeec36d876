"""Modules call their children wherever a user did something to them, with the same result."""

from __future__ import annotations

import copy
from unittest.mock import Mock

import meddling
import pytest
import torch
from meddling import check_close, convolutions, leaves, prepared, with_part
from torch import nn
from torch.nn.functional import conv2d, gelu
from torch.nn.modules.module import register_module_forward_hook

from attnops.models.backbones.mscan import Stage
from attnops.models.decoders import ConvNormReLU, CrissCross, MLPDecoder
from attnops.nn import (
    AFNB,
    APNB,
    ASPP,
    CGNL,
    MSCA,
    DynamicLocalDistribution,
    GALDBlock,
    Hamburger,
    LocalDistribution,
    MSCABlock,
    NonLocal,
    PyramidPooling,
    ScaleAttention,
    SqueezeAttention,
)
from attnops.nn.mscan import ConvolutionalFeedForward

pytestmark = pytest.mark.usefixtures("without_onednn")

SIZES = (1, 2)


def apnb(**options):
    return APNB(12, 4, 4, sizes=SIZES, **options)


def afnb(**options):
    return AFNB(6, 12, 4, 5, sizes=SIZES, **options)


def squeeze_attention():
    module = SqueezeAttention(12, 5, pool_size=2, reduction=2, squeeze_channels=3)
    module.squeeze[1].bias.data = torch.tensor([0.5, 0.0, -0.5])  # its ReLU passes one, clips one
    return module


LINEAR = {"projection": "linear"}
ONE, SMALL = ((2, 12, 9, 8),), ((2, 12, 19, 17),)
TWO = ((2, 6, 9, 10), (2, 12, 7, 5))
MODULES = {
    "apnb": (apnb, ONE),
    "apnb-linear": (lambda: apnb(**LINEAR), ONE),
    "apnb-key_value": (lambda: apnb(**LINEAR, share="key_value"), ONE),
    "apnb-context": (lambda: apnb(**LINEAR, fuse=False), ONE),
    "apnb-max": (lambda: apnb(**LINEAR, reduce="max"), ONE),
    "afnb": (afnb, TWO),
    "afnb-linear": (lambda: afnb(**LINEAR), TWO),
    "non_local": (lambda: NonLocal(12, 4, projection="bn_relu", share="none"), ONE),
    "cgnl": (lambda: CGNL(12, 8, groups=4, use_scale=True), ONE),
    "ldv1": (lambda: LocalDistribution(12), SMALL),
    "gald": (lambda: GALDBlock(16, 8), ((2, 16, 33, 31),)),
    "ldv2": (lambda: DynamicLocalDistribution(6, 3, 2), ((2, 6, 9, 8),) * 2),
    "psp": (lambda: PyramidPooling(12, 4, SIZES), ONE),
    "aspp": (lambda: ASPP(12, 4, 6, dilations=(1,)), ONE),
    "msca": (lambda: MSCA(12, 3, (5, 7)), ONE),
    "hamburger": (lambda: Hamburger(12, 3, seed=2, norm_groups=4), ONE),
    "sa": (squeeze_attention, ONE),
    "scale": (lambda: ScaleAttention(6, 2, 8), None),
    "feed_forward": (lambda: ConvolutionalFeedForward(12, 20), ONE),
    "block": (lambda: MSCABlock(12, 1.5), ONE),
    "stage": (lambda: Stage(nn.Sequential(nn.Conv2d(12, 8, 3)), [MSCABlock(8)], 8), ONE),
    "conv_norm": (lambda: ConvNormReLU(12, 32), ONE),
    "criss_cross": (lambda: CrissCross(16), ((2, 16, 6, 5),)),
}


def arguments(name, grad=False):
    generator = torch.Generator().manual_seed(7)

    def draw(*shape):
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return drawn.requires_grad_(grad)

    shapes = MODULES[name][1]
    if shapes is None:  # features and scores of two scales
        sides = ((9, 8), (5, 4))
        return [[draw(2, channels, *side) for side in sides] for channels in (6, 3)]
    return [draw(*shape) for shape in shapes]


def made(name, training):
    torch.manual_seed(0)
    return prepared(MODULES[name][0](), training=training)


every_module = pytest.mark.parametrize("name", MODULES)
both_modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])


@both_modes
@every_module
def test_forward_hooks_fire_and_change_nothing(name, training):
    """On every part by itself, on all together, and on all modules of the process."""
    module, args = made(name, training), arguments(name)
    wanted = copy.deepcopy(module)(*args)
    parts = leaves(module)
    for chosen in [*([part] for part in parts), list(parts)]:
        twin = copy.deepcopy(module)
        with meddling.watched({n: twin.get_submodule(n) for n in chosen}) as seen:
            check_close(twin(*args), wanted, str(chosen))
        for part, outputs in seen.items():
            assert outputs, f"{part} was not called"
            for kept, at_the_time in outputs:
                assert torch.equal(kept, at_the_time), f"what {part} returned was changed"
    called = set()
    twin = copy.deepcopy(module)
    handle = register_module_forward_hook(lambda part, *_: called.add(part))
    try:
        check_close(twin(*args), wanted)
    finally:
        handle.remove()
    assert called >= set(leaves(twin).values())


@both_modes
@every_module
def test_hooks_see_the_maps_of_the_plain_chain(name, training):
    """Every convolution gets a map, and returns what its own forward makes of it."""
    module, args = made(name, training), arguments(name)
    pairs = []
    for part in convolutions(module):
        module.get_submodule(part).register_forward_hook(
            lambda conv, given, out: pairs.append((conv, given[0], out))
        )
    module(*args)
    for conv, given, out in pairs:
        assert given.ndim == 4
        expected = conv2d(
            given, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
        )
        check_close(out, expected)


@both_modes
@every_module
def test_a_hook_may_replace_what_a_child_returns(name, training):
    """Halving a convolution's output is halving its weight and bias."""
    module, args = made(name, training), arguments(name)
    for part in convolutions(module):
        hooked, halved = copy.deepcopy(module), copy.deepcopy(module)
        hooked.get_submodule(part).register_forward_hook(lambda conv, given, out: out / 2)
        with torch.no_grad():
            for parameter in halved.get_submodule(part).parameters():
                parameter /= 2
        check_close(hooked(*args), halved(*args), part)


@both_modes
@every_module
def test_full_backward_hooks_change_no_gradient(name, training):
    module = made(name, training)
    gradients = []
    for hooked in (False, True):
        twin, args, fired = copy.deepcopy(module), arguments(name, grad=True), set()
        if hooked:
            for part, child in twin.named_modules():
                child.register_full_backward_pre_hook(lambda *_: None)
                child.register_full_backward_hook(
                    lambda *_, part=part, fired=fired: fired.add(part)
                )
        out = twin(*args)
        weights = torch.randn(
            out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(3)
        )
        (out * weights).sum().backward()
        tensors = [x for arg in args for x in (arg if isinstance(arg, list) else [arg])]
        gradients.append([x.grad for x in (*tensors, *twin.parameters())])
        assert not hooked or fired >= set(leaves(twin))
    for found, wanted in zip(*reversed(gradients), strict=True):
        check_close(found, wanted)


@both_modes
@every_module
def test_an_adapter_around_a_convolution_counts(name, training):
    module, args = made(name, training), arguments(name)
    for part in convolutions(module):
        adapted = with_part(module, part, meddling.Adapter)
        wanted = with_part(adapted, part, meddling.merged)(*args)
        out = adapted(*args)
        check_close(out, wanted, part)
        assert (out - module(*args)).abs().max() > 1e-6
        out.square().sum().backward()
        assert adapted.get_submodule(part).delta.weight.grad.any()


@pytest.mark.parametrize("change", meddling.REPARAMETRISATIONS)
@every_module
def test_reparametrised_weights_count(name, change):
    module, args = made(name, training=False), arguments(name)
    change = meddling.REPARAMETRISATIONS[change]
    for part in convolutions(module):
        wanted = with_part(module, part, meddling.with_effective_weight(change))(*args)
        changed = with_part(module, part, change)
        check_close(changed(*args), wanted, part)
        assert (wanted - module(*args)).abs().max() > 1e-6


@both_modes
@every_module
def test_a_forward_set_on_a_child_counts(name, training):
    module, args = made(name, training), arguments(name)
    for part, child in leaves(module).items():
        if not isinstance(child, (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm)):
            continue
        child.forward = Mock(wraps=child.forward)
        module(*args)
        assert child.forward.called, part
        del child.forward


@both_modes
@pytest.mark.parametrize("part", ["attention", "fusion"])
@pytest.mark.parametrize("name", ["apnb", "apnb-linear", "afnb", "afnb-linear"])
def test_the_blocks_within_a_block_are_hooked_naturally(name, part, training):
    """The attention returns the context; the fusion gets it, and the map."""
    module, args = made(name, training), arguments(name)
    wanted = copy.deepcopy(module)(*args)
    calls = []
    module.get_submodule(part).register_forward_hook(
        lambda child, given, out: calls.append(([x.shape for x in given], out.shape))
    )
    check_close(module(*args), wanted)
    context = high = args[-1].shape
    given = [context, high] if part == "fusion" else [args[0].shape, high]
    assert calls == [(given, context)]


def strip_chain(module, x):
    a = module.local(x)
    pairs = zip(module.rows, module.columns, strict=True)
    return module.mix(a + sum(column(row(a)) for row, column in pairs)) * x


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ("local", {"kernel_size": 3, "padding": 2, "dilation": 2}),
        ("local", {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
        ("local", {"kernel_size": 3, "padding": "same"}),
        ("local", {"kernel_size": 1, "bias": False}),
        ("local", {"kernel_size": (3, 5), "padding": (1, 2), "groups": 4}),
        ("rows.0", {"kernel_size": 3, "padding": 1}),
        ("rows.0", {"kernel_size": (1, 3), "padding": (0, 2), "dilation": (1, 2)}),
        ("columns.1", {"kernel_size": (5, 1), "padding": "same", "padding_mode": "circular"}),
        ("mix", {"kernel_size": 3, "padding": 1}),
    ],
    ids=str,
)
def test_gating_unit_of_other_convolutions(part, options):
    options = {"groups": 1 if part == "mix" else 12} | options
    module = with_part(
        made("msca", False), part, lambda _: nn.Conv2d(12, 12, dtype=torch.float64, **options)
    )
    x = arguments("msca")[0]
    check_close(module(x), strip_chain(module, x))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 20},
        {"kernel_size": 5, "padding": 2, "groups": 4},
        {"kernel_size": 3, "padding": 1, "groups": 20, "padding_mode": "replicate"},
        {"kernel_size": 4, "padding": "same", "groups": 20},
        {"kernel_size": 3, "stride": 2, "groups": 20},
    ],
    ids=str,
)
def test_feed_forward_of_another_convolution(options):
    module = made("feed_forward", False)
    module.depthwise = nn.Conv2d(20, 20, dtype=torch.float64, **options)
    x = arguments("feed_forward")[0]
    check_close(module(x), module.contract(gelu(module.depthwise(module.expand(x)))))


def test_values_of_another_convolution():
    """A 3x3 value and a strided key: the anchors are pooled from what they return."""
    module = made("apnb-context", False).attention
    module.value = nn.Conv2d(12, 4, 3, padding=1, dtype=torch.float64)
    module.out = nn.Conv2d(4, 12, 3, padding=1, dtype=torch.float64)
    module.key.conv = nn.Conv2d(12, 4, 3, padding=1, dtype=torch.float64)
    x = arguments("apnb")[0]
    key, value = module.key.conv(x), module.value(x)

    def anchors(y):
        pools = [nn.functional.adaptive_avg_pool2d(y, n).flatten(2) for n in SIZES]
        return torch.cat(pools, dim=2)

    weights = (key.flatten(2).mT @ anchors(key) / 2).softmax(dim=2)
    context = (anchors(value) @ weights.mT).unflatten(2, x.shape[2:])
    check_close(module(x, x), module.out(context))


def test_biases_that_were_not_there():
    """Bias-free convolutions that are exchanged for ones with a bias."""
    shared = (("ldv2", ("query", "value")), ("hamburger", ("ham_out",)), ("cgnl", "tpgz"))
    for name, parts in shared:
        module, args = made(name, False), arguments(name)
        for part in parts:
            old = module.get_submodule(part)
            new = nn.Conv2d(old.in_channels, old.out_channels, 1, groups=old.groups).double()
            exchanged = with_part(module, part, lambda _, new=new: new)
            out = exchanged(*args)
            exchanged.get_submodule(part).register_forward_hook(lambda *_: None)
            check_close(exchanged(*args), out)
            with torch.no_grad():
                new.bias.normal_()
            other = with_part(module, part, lambda _, new=new: new)(*args)
            assert (other - out).abs().max() > 1e-6


@pytest.mark.parametrize("use_scale", [False, True])
def test_half_precision_sums_stay_finite_with_hooks(use_scale):
    """The sums of this map are far beyond float16; the GroupNorm takes their size out."""
    torch.manual_seed(0)
    module = CGNL(32, 16, use_scale=use_scale)
    x = 20 + 10 * torch.randn(2, 32, 40, 40)
    wanted = module(x)
    half = copy.deepcopy(module).half()
    half.z.register_forward_hook(lambda *_: None)
    out = half(x.half())
    assert out.isfinite().all()
    assert (out.float() - wanted).norm() < 20 * torch.finfo(torch.half).eps * wanted.norm()


SHORTENED = ["apnb", "afnb-linear", "msca", "hamburger", "feed_forward", "aspp"]


@pytest.mark.parametrize("name", SHORTENED)
def test_exported_graphs_keep_the_short_way(name):
    """Parameters of other tensor classes stand for the module's while PyTorch traces."""
    module, args = made(name, False), tuple(arguments(name))
    called = {"apnb": "anchor_attention", "afnb-linear": "anchor_attention"}
    called |= {"msca": "strip_conv", "feed_forward": "feed_forward", "hamburger": "nmf"}
    program = torch.export.export(module, args)
    check_close(program.module()(*args), module(*args))
    graphs = [part.graph for part in program.graph_module.modules() if hasattr(part, "graph")]
    names = [str(node.target) for graph in graphs for node in graph.nodes]
    if name in called:
        assert any(called[name] in target for target in names)
    assert not any("batch_norm" in target for target in names) or name == "aspp"
    assert name != "msca" or sum("conv" in target for target in names) == 2  # strips, mix


@pytest.mark.parametrize("name", ["apnb", "msca", "hamburger", "feed_forward", "cgnl", "aspp"])
def test_compiles_whole_with_and_without_hooks(name):
    module, args = made(name, False), arguments(name)
    wanted = module(*args)
    for hooked in (False, True):
        torch._dynamo.reset()
        if hooked:
            for part in convolutions(module):
                module.get_submodule(part).register_forward_hook(lambda conv, given, out: out * 1.0)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        check_close(compiled(*args), wanted)


@both_modes
@every_module
def test_gradients_have_the_strides_of_channels_last_parameters(name, training):
    """DDP compares all of them, those of dimensions of 1 too. Where a weight is used twice, PyTorch
    adds the gradients, and does not keep those.
    """
    if name == "criss_cross":
        pytest.skip("its weights are used twice")
    module = made(name, training).to(memory_format=torch.channels_last)
    args = arguments(name, grad=True)
    module(*args).square().sum().backward()
    for part, parameter in module.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), part


def test_mlp_decoder_calls_its_projections():
    widths = {4: 8, 6: 4, 8: 2, 10: 1}  # and sides
    module = prepared(MLPDecoder(tuple(widths), 32, 0.0), training=False)
    maps = [torch.randn(1, c, side, side, dtype=torch.float64) for c, side in widths.items()]
    wanted = module(maps)
    with meddling.watched(leaves(module)) as seen:
        check_close(module(maps), wanted)
    assert all(seen.values())
