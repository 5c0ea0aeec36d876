"""Every style of every network and block, there and back, and other numbers of classes."""

from __future__ import annotations

import copy

import pytest
import torch
from model_checks import shake, tiny_resnet
from torch import Tensor, nn

pytest.importorskip("timm")

from tiny_networks import FAMILIES

from attnops.models import (
    GALDv1,
    MappingError,
    SANet,
    SegmentationModel,
    create_model,
    export_checkpoint,
    load_checkpoint,
)
from attnops.models.backbones.timm_features import TimmFeatures
from attnops.models.checkpoints import checkpoint_styles
from attnops.nn import (
    AFNB,
    APNB,
    ASPP,
    CGNL,
    MSCA,
    GALDBlock,
    Hamburger,
    LocalDistribution,
    MSCABlock,
    PyramidPooling,
)

CLASSES, OTHERS = 5, 8
NETWORKS = {
    **FAMILIES,
    "galdv1_aspp": lambda k: GALDv1(k, tiny_resnet("deep", "full"), ga="aspp", channels=32),
    "sanet_squeeze": lambda k: SANet(k, tiny_resnet("plain"), squeeze_channels=4),
    "sanet_efficientnet": lambda k: SANet(k, TimmFeatures("efficientnet_b0")),
}
BLOCKS = {
    "APNB": lambda: APNB(8, 4, 4),
    "AFNB": lambda: AFNB(6, 8, 4, 4),
    "MSCA": lambda: MSCA(4),
    "MSCABlock": lambda: MSCABlock(4),
    "Hamburger": lambda: Hamburger(32),
    "GALDBlock": lambda: GALDBlock(16, 8),
    "CGNL": lambda: CGNL(16, 8),
    "LocalDistribution": lambda: LocalDistribution(4),
    "ASPP": lambda: ASPP(6, 4, 8),
    "PyramidPooling": lambda: PyramidPooling(12, 8),
}
SMALL = [name for name in NETWORKS if name not in ("segnext", "sanet_efficientnet")]


def drawn(make, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = shake(make())
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.fill_(seed)
    return model


def kept(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def close(value: Tensor, wanted: Tensor) -> bool:
    """Biases that are moved into a mean and back are rounded."""
    return torch.equal(value, wanted) or torch.allclose(value, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [*NETWORKS, *BLOCKS])
def test_every_style_goes_there_and_back(name):
    make = BLOCKS.get(name) or (lambda: NETWORKS[name](CLASSES))
    source, other = drawn(make, 1), drawn(make, 2)
    styles = checkpoint_styles(source)
    assert "attnops" in styles and (len(styles) > 1 or name == "galdv2")
    for style in styles:
        target = copy.deepcopy(other)
        state = export_checkpoint(source, style)
        report = load_checkpoint(target, state)
        again = export_checkpoint(target, style)
        assert again.keys() == state.keys()
        assert all(close(again[key], state[key]) for key in state), style
        assert report.dropped == []
        untouched = set(report.kept)
        assert untouched != set(target.state_dict())
        before = other.state_dict()
        for key, value in target.state_dict().items():
            assert key not in untouched or torch.equal(value, before[key]), key
        partial = "backbone" in style or style == "port"
        assert bool(untouched) == partial, style
        if not partial and name in SMALL:
            check_same_function(source, target)


def check_same_function(source: SegmentationModel, target: SegmentationModel) -> None:
    images = torch.randn(1, 3, 113, 113)
    with torch.no_grad():
        wanted, found = source.eval()(images)["out"], target.eval()(images)["out"]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [*SMALL, *BLOCKS])
def test_every_style_can_be_written_by_safetensors(name, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    make = BLOCKS.get(name) or (lambda: NETWORKS[name](CLASSES))
    source = drawn(make, 1).to(memory_format=torch.channels_last)
    path = tmp_path / "a.safetensors"
    for style in checkpoint_styles(source):
        state = export_checkpoint(source, style)
        safetensors.save_file(state, path)
        found = safetensors.load_file(path)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)


def test_an_export_is_the_models_own_tensors_where_it_can_be():
    block = APNB(8, 4, 4)
    state = export_checkpoint(block, "official")
    assert state["stages.0.f_value.weight"].data_ptr() == block.attention.value.weight.data_ptr()
    copied, original = (state[f"stages.0.f_{name}.0.weight"] for name in ("query", "key"))
    assert torch.equal(copied, original) and copied.data_ptr() != original.data_ptr()


def of_classes(name: str) -> set[str]:
    """Keys whose shapes depend on the number of classes, by making the network twice."""
    with torch.device("meta"):
        few, many = (NETWORKS[name](k).state_dict() for k in (CLASSES, OTHERS))
    return {key for key in few if few[key].shape != many[key].shape}


@pytest.mark.parametrize("name", ["segnext", *SMALL])
def test_classifiers_for_other_classes_are_refused_or_kept(name):
    source = drawn(lambda: NETWORKS[name](OTHERS), 1)
    model = drawn(lambda: NETWORKS[name](CLASSES), 2)
    before = kept(model)
    dependent = of_classes(name)
    assert dependent
    whole = [s for s in checkpoint_styles(source) if "backbone" not in s]
    for style in whole:
        state = export_checkpoint(source, style)
        with pytest.raises(MappingError, match=r'8 classes, the model 5.*classes="drop"'):
            load_checkpoint(model, state)
        assert all(torch.equal(value, before[key]) for key, value in kept(model).items())
    for style in whole:
        target = copy.deepcopy(model)
        state = {"state_dict": export_checkpoint(source, style)}
        report = load_checkpoint(target, state, classes="drop")
        assert report.classes == (OTHERS, CLASSES)
        assert "8 classes in the file, 5 in the model" in str(report)
        modules = {key.rpartition(".")[0] for key in dependent}
        left = {key for key in before if key.rpartition(".")[0] in modules}
        assert left <= set(report.kept)
        outside = {"attention"} if style == "port" else set()  # which the port has not
        for key, value in target.state_dict().items():
            if key in left or key.partition(".")[0] in outside:
                assert torch.equal(value, before[key]), (style, key)
            elif not key.endswith(("conv.bias", "bn.running_mean", ".bias", ".running_mean")):
                assert torch.equal(value, source.state_dict()[key]), (style, key)
        assert len(report.dropped) == len(left)
        assert set(report.dropped) <= set(state["state_dict"])


@pytest.mark.parametrize("name", ["segnext", "ann"])
def test_with_equal_classes_nothing_is_left_out(name):
    source, model = (drawn(lambda: NETWORKS[name](CLASSES), seed) for seed in (1, 2))
    report = load_checkpoint(model, source.state_dict(), classes="drop")
    assert report.classes is None and report.kept == [] and report.dropped == []
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())


def test_only_the_number_of_classes_may_differ():
    model = drawn(lambda: NETWORKS["segnext"](CLASSES), 1)
    source = drawn(lambda: NETWORKS["segnext"](OTHERS), 2)
    before = kept(model)
    for key, shape in (
        ("decoder.align.conv.weight", (8, 256, 1, 1)),
        ("classify.weight", (OTHERS, 255, 1, 1)),
        ("classify.weight", (OTHERS, 256, 3, 3)),
        ("classify.weight", (OTHERS, 256)),
    ):
        state = kept(source) | {key: torch.zeros(shape)}
        with pytest.raises(MappingError, match=rf"other shapes: (\S+ \S+ \S+ \S+, )?{key}"):
            load_checkpoint(model, state, classes="drop")
    lost = kept(source)
    del lost["decoder.squeeze.norm.weight"]
    with pytest.raises(MappingError, match=r"missing: decoder\.squeeze\.norm\.weight"):
        load_checkpoint(model, lost, classes="drop")
    assert all(torch.equal(value, before[key]) for key, value in kept(model).items())
    with pytest.raises(ValueError, match="classes must be 'strict' or 'drop'"):
        load_checkpoint(model, before, classes="ignore")


def test_classifiers_on_the_meta_device_are_initialised():
    source = create_model("segnext_t", num_classes=OTHERS)
    with torch.device("meta"):
        model = create_model("segnext_t", num_classes=CLASSES)
    report = load_checkpoint(model, export_checkpoint(source, "mmseg"), classes="drop")
    assert set(report.kept) == {"classify.weight", "classify.bias"}
    assert not model.classify.bias.any()
    assert 0.005 < model.classify.weight.std() < 0.02
    assert torch.equal(model.decoder.align.conv.weight, source.decoder.align.conv.weight)
