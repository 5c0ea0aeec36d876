"""Published checkpoints of ANN, GALD, their blocks, and of the backbones."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from model_checks import published_keys, shake, tiny_resnet
from torch import Tensor, nn
from torch.nn.functional import interpolate

pytest.importorskip("timm")

import timm

from attnops.models import (
    ANN,
    GALDv1,
    MappingError,
    create_model,
    export_checkpoint,
    load_checkpoint,
)
from attnops.models.ann import _drop_biases
from attnops.nn import AFNB, APNB, ASPP, CGNL, GALDBlock, LocalDistribution, PyramidPooling

NETWORKS = [
    ("ann_r101", {}, "ann_official_r101", "official"),
    ("ann_r101", {"form": "mmseg"}, "mmseg_ann_r101-d8", "mmseg"),
    ("galdv1_r50", {}, "gald_official_r50", "official"),
    ("galdv1_r101", {}, "gald_official_r101", "official"),
]
QUERY_COPIES = (
    ("context.2.stages.0.f_query", "context.2.stages.0.f_key"),
    ("decode_head.context.stages.0.query_project", "decode_head.context.stages.0.key_project"),
)
SEPARATE = dict(
    zip(
        ("conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1"),
        ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"),
        strict=True,
    )
)


def numbered(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Another number for every name, without memory for it; copies repeat their originals."""
    state = {
        name: torch.tensor(float(i)).expand(shape) for i, (name, shape) in enumerate(shapes.items())
    }
    for copied, original in QUERY_COPIES:
        for name in shapes:
            if name.startswith(copied + "."):
                state[name] = state[original + name.removeprefix(copied)]
    return state


def number(x: Tensor) -> float:
    return x[(0,) * x.dim()].item()


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, num_classes=19, **options)


def old_stem(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A GALD checkpoint with its stem named as before August 2020."""
    renamed = {}
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        renamed[f"{SEPARATE.get(module, module)}.{leaf}"] = value
    return renamed


@pytest.mark.parametrize(("name", "options", "keys", "style"), NETWORKS)
def test_whole_checkpoints_go_there_and_back(name, options, keys, style):
    state = numbered(published_keys(keys))
    model = on_meta(name, **options)
    wrapped = {"state_dict": {f"module.{key}": value for key, value in state.items()}}
    report = load_checkpoint(model, wrapped)
    assert report.style == style
    assert (report.dropped, report.kept, report.added) == ([], [], [])
    assert set(report.loaded) == set(state)
    assert set(report.loaded.values()) == set(model.state_dict())
    back = export_checkpoint(model, style)
    assert {k: list(v.shape) for k, v in back.items()} == published_keys(keys)
    assert all(number(back[key]) == number(state[key]) for key in state)


@pytest.mark.parametrize("keys", ["gald_official_r50", "gald_official_r101"])
def test_the_older_naming_of_the_stem(keys):
    state = old_stem(numbered(published_keys(keys)))
    model = on_meta("galdv1_" + keys.rpartition("_")[2])
    assert load_checkpoint(model, state).style == "official-2019"
    back = export_checkpoint(model, "official-2019")
    assert set(back) == set(state)
    assert all(number(back[key]) == number(state[key]) for key in state)
    newer = export_checkpoint(model, "official")
    assert set(newer) == set(published_keys(keys))


@pytest.mark.parametrize(("name", "options", "keys", "style"), NETWORKS)
def test_a_missing_key_is_refused_by_name(name, options, keys, style):
    state = numbered(published_keys(keys))
    lost = next(key for key in state if key.endswith("layer4.0.conv2.weight"))
    del state[lost]
    with pytest.raises(
        MappingError, match=r"missing: (\S+ \(here )?backbone\.layer4\.0\.conv2\.weight"
    ):
        load_checkpoint(on_meta(name, **options), state)


@pytest.mark.parametrize("which", [0, 1])
def test_a_query_of_its_own_is_refused(which):
    name, options, keys, _ = NETWORKS[which]
    state = numbered(published_keys(keys))
    lone = next(key for key in state if key.startswith(QUERY_COPIES[which][0]))
    state[lone] = state[lone] + 1
    with pytest.raises(MappingError, match="must repeat"):
        load_checkpoint(on_meta(name, **options), state)


def test_the_batch_norm_of_each_block_stands_where_it_was_published():
    state = numbered(published_keys("ann_official_r101"))
    for there, elsewhere in (
        ("fusion.conv_bn_dropout.1.weight", "fusion.conv_bn_dropout.1.0.weight"),
        ("context.2.conv_bn_dropout.1.0.weight", "context.2.conv_bn_dropout.1.weight"),
    ):
        moved = dict(state)
        moved[elsewhere] = moved.pop(there)
        with pytest.raises(MappingError, match="unexpected"):
            load_checkpoint(on_meta("ann_r101"), moved)


def test_one_form_does_not_load_the_others_stem():
    state = numbered(published_keys("ann_official_r101"))
    with pytest.raises(MappingError, match=r"backbone\.conv1\.0\.weight\) \[64, 3, 3, 3\]"):
        load_checkpoint(on_meta("ann_r101", form="mmseg"), state)


def tiny_ann(**options) -> ANN:
    return shake(ANN(5, tiny_resnet(), channels=24, key_channels=8, **options)).eval()


def test_a_released_network_in_mmsegmentations_names():
    """Loading gives zero biases, so that the running means have to hold them."""
    model, other = tiny_ann(), tiny_ann()
    report = load_checkpoint(other, export_checkpoint(model, "mmseg"))
    assert len(report.added) == 7  # two projections and the fusion of AFNB, ... the auxiliary head
    for key in report.added:
        assert not other.state_dict()[key].any(), key
    images = torch.randn(2, 3, 65, 72)
    with torch.no_grad():
        torch.testing.assert_close(other(images)["out"], model(images)["out"], rtol=1e-5, atol=1e-5)


def blocks() -> list[tuple[nn.Module, tuple[Tensor, ...]]]:
    low, high = torch.randn(2, 12, 18, 20), torch.randn(2, 16, 9, 10)
    return [
        (AFNB(12, 16, 8, 8), (low, high)),
        (APNB(16, 8, 8), (high,)),
    ]


def without_biases(block: nn.Module) -> nn.Module:
    block = copy.deepcopy(block)
    _drop_biases(block)
    return block


@pytest.mark.parametrize("which", [0, 1], ids=["AFNB", "APNB"])
@pytest.mark.parametrize("style", ["official", "mmseg"])
def test_biases_fold_between_the_forms_of_a_block(which, style):
    """From the form with biases to the one without: running_mean - bias; back: zeros."""
    block, inputs = blocks()[which]
    shake(block).eval()
    bare = without_biases(block)
    load_checkpoint(bare, export_checkpoint(block, style))
    back = copy.deepcopy(block)
    report = load_checkpoint(back, export_checkpoint(bare, style))
    fused = block.fusion
    torch.testing.assert_close(bare.fusion.bn.running_mean, fused.bn.running_mean - fused.conv.bias)
    assert not back.fusion.conv.bias.any()
    assert bool(report.added) == (style == "mmseg")
    with torch.no_grad():
        wanted = block(*inputs)
        for other in (bare, back):
            torch.testing.assert_close(other(*inputs), wanted, rtol=1e-5, atol=1e-5)
    # Without the fold something else comes out, so that the comparison can see it.
    fused.conv.bias.data.zero_()
    with torch.no_grad():
        assert not torch.allclose(block(*inputs), wanted, atol=1e-3)


@pytest.mark.parametrize("which", [0, 1], ids=["AFNB", "APNB"])
def test_keys_of_a_block_are_the_published_ones_from_the_block_on(which):
    block, _ = blocks()[which]
    for keys, prefix, style in (
        ("ann_official_r101", ("fusion.", "context.2.")[which], "official"),
        ("mmseg_ann_r101-d8", ("decode_head.fusion.", "decode_head.context.")[which], "mmseg"),
    ):
        wanted = {k.removeprefix(prefix) for k in published_keys(keys) if k.startswith(prefix)}
        assert set(export_checkpoint(block, style)) == wanted


def test_blocks_of_gald_load_the_keys_below_them():
    keys = published_keys("gald_official_r50")
    for block, prefix in (
        (GALDBlock(), "head.a2block."),
        (CGNL(512, 256), "head.a2block.long_relation."),
        (LocalDistribution(512), "head.a2block.local_attention."),
    ):
        shapes = {k.removeprefix(prefix): v for k, v in keys.items() if k.startswith(prefix)}
        state = numbered(shapes)
        load_checkpoint(block, state)
        back = export_checkpoint(block, "official")
        assert {k: number(v) for k, v in back.items()} == {k: number(v) for k, v in state.items()}


def branch(in_channels: int, out_channels: int, kernel: int = 1, dilation: int = 1, *before):
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(
        in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False
    )
    return nn.Sequential(*before, conv, nn.BatchNorm2d(out_channels), nn.ReLU())


def aligned(x: Tensor, size) -> Tensor:
    return interpolate(x, size, mode="bilinear", align_corners=True)


class PublishedASPP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = branch(12, 4, 1, 1, nn.AdaptiveAvgPool2d(1))
        self.conv2 = branch(12, 4)
        self.conv3, self.conv4, self.conv5 = (branch(12, 4, 3, d) for d in (12, 24, 36))
        self.bottleneck = branch(20, 8)

    def forward(self, x):
        maps = [aligned(self.conv1(x), x.shape[2:])]
        maps += [conv(x) for conv in (self.conv2, self.conv3, self.conv4, self.conv5)]
        return self.bottleneck(torch.cat(maps, dim=1))


class PublishedPSP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            branch(12, 8, 1, 1, nn.AdaptiveAvgPool2d(n))[:-1] for n in (1, 2, 3, 6)
        )
        self.bottleneck = branch(12 + 4 * 8, 8, 3)

    def forward(self, x):
        maps = [aligned(stage(x), x.shape[2:]) for stage in self.stages]
        return self.bottleneck(torch.cat([*maps, x], dim=1))


@pytest.mark.parametrize(
    ("published", "ours"),
    [(PublishedASPP, lambda: ASPP(12, 4, 8)), (PublishedPSP, lambda: PyramidPooling(12, 8))],
    ids=["ASPP", "PSP"],
)
def test_other_aggregations_load_and_compute_the_published_map(published, ours):
    theirs, block = shake(published()).eval(), ours().eval()
    state = theirs.state_dict()
    assert load_checkpoint(block, state).style == "official"
    x = torch.randn(2, 12, 40, 44)
    with torch.no_grad():
        torch.testing.assert_close(block(x), theirs(x), rtol=1e-4, atol=1e-5)
    back = export_checkpoint(block, "official")
    assert set(back) == set(state)
    assert all(torch.equal(back[key], state[key]) for key in state)


def shapes_of(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "options", "file"),
    [
        ("sanet_r50", {}, "resnet50"),
        ("sanet_r101", {}, "resnet101"),
        ("galdv1_r50", {}, "resnet50s"),
        ("galdv2_r101", {}, "resnet101s"),
        ("ann_r50", {}, "resnet50s"),
        ("ann_r101", {"form": "mmseg"}, "resnet101c"),
        ("sanet_effnetb7", {}, "tf_efficientnet_b7"),
    ],
)
def test_backbones_as_timm_has_them(name, options, file):
    with torch.device("meta"):
        shapes = shapes_of(timm.create_model(file, pretrained=False))
    model = on_meta(name, **options)
    expected = [key for key in model.state_dict() if key.startswith("backbone.")]
    report = load_checkpoint(model, numbered(shapes))
    assert report.style == "backbone"
    assert sorted(report.loaded.values()) == sorted(expected)
    assert set(report.kept) == set(model.state_dict()) - set(expected)
    left = {key.partition(".")[0] for key in report.dropped}
    assert left <= {"fc", "classifier", "conv_head", "bn2"}
    values = itertools.chain(model.parameters(), model.buffers())
    assert {value.device.type for value in values} == {"cpu"}


@pytest.mark.parametrize(("name", "file"), [("sanet_r50", "resnet50"), ("sanet_r101", "resnet101")])
def test_backbones_as_torchvision_has_them(name, file):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        shapes = shapes_of(getattr(models, file)())
    report = load_checkpoint(on_meta(name), numbered(shapes))
    assert report.style == "backbone"
    assert sorted(report.dropped) == ["fc.bias", "fc.weight"]


@pytest.mark.parametrize("style", ["backbone-separate", "backbone-mmseg"])
def test_backbones_with_other_names_of_the_stem(style):
    model = GALDv1(5, tiny_resnet("deep", "full"), channels=32)
    state = export_checkpoint(model, style)
    assert any(key.startswith(("conv3.", "stem.6.")) for key in state)
    other = GALDv1(5, tiny_resnet("deep", "full"), channels=32)
    report = load_checkpoint(other, state | {"fc.weight": torch.zeros(10, 128)})
    assert (report.style, report.dropped) == (style, ["fc.weight"])
    pairs = itertools.zip_longest(other.backbone.parameters(), model.backbone.parameters())
    assert all(torch.equal(a, b) for a, b in pairs)


def test_half_a_backbone_is_refused():
    with torch.device("meta"):
        shapes = shapes_of(timm.create_model("resnet50", pretrained=False))
    state = {k: v for k, v in numbered(shapes).items() if not k.startswith("layer3.")}
    with pytest.raises(MappingError, match=r"missing: layer3\S+ \(here backbone\.layer3"):
        load_checkpoint(on_meta("sanet_r50"), state)


PORT = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 32, 35, 38)


def port_shapes(classes: int = 19) -> dict[str, list[int]]:
    widths = [3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6, 1024, 1024, classes]
    shapes = {}
    for i, (index, pair) in enumerate(zip(PORT, itertools.pairwise(widths), strict=True)):
        side = 1 if i >= 14 else 3
        shapes[f"features.{index}.weight"] = [pair[1], pair[0], side, side]
        shapes[f"features.{index}.bias"] = [pair[1]]
    return shapes


def test_the_port_of_deeplab_fills_all_but_the_attention():
    model = on_meta("deeplab_attention")
    state = numbered(port_shapes())
    report = load_checkpoint(model, state)
    assert (report.style, report.dropped) == ("port", [])
    assert {key.partition(".")[0] for key in report.kept} == {"attention"}
    assert number(model.cls.weight) == number(state["features.38.weight"])
    assert number(model.field[3].bias) == number(state["features.35.bias"])
    back = export_checkpoint(model, "port")
    assert set(back) == set(state)
    assert all(number(back[key]) == number(state[key]) for key in state)


def test_a_port_without_its_classifiers_bias_is_refused():
    state = numbered(port_shapes())
    del state["features.38.bias"]
    with pytest.raises(MappingError, match=r"missing: features\.38\.bias \(here cls\.bias\)"):
        load_checkpoint(on_meta("deeplab_attention"), state)


def test_vgg16_as_timm_has_it():
    with torch.device("meta"):
        shapes = shapes_of(timm.create_model("vgg16", pretrained=False))
    model = on_meta("deeplab_attention")
    report = load_checkpoint(model, numbered(shapes))
    assert report.style == "backbone"
    assert len(report.loaded) == 26
    kept = {key.partition(".")[0] for key in report.kept}
    assert kept == {"field", "cls", "attention"}


@pytest.mark.parametrize(
    "block", [APNB(16, 8, 8, projection="linear"), APNB(16, 8, 8, share="key_value")]
)
def test_the_papers_variants_have_no_published_names(block):
    with pytest.raises(ValueError, match="no style 'official'"):
        export_checkpoint(block, "official")
