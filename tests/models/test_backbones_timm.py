"""Networks on any of timm's backbones, images of any number of channels, weights of backbones."""

import pytest
import torch
from model_checks import tiny_resnet
from safetensors.torch import save_file

from attnops.models import (
    ANN,
    DeepLabAttention,
    GALDv2,
    MappingError,
    SANet,
    SegmentationModel,
    SegNeXt,
    create_model,
    load_checkpoint,
)
from attnops.models.backbones.timm_features import TimmFeatures

timm = pytest.importorskip("timm")

SMALL = "tf_efficientnet_lite0"
NETWORKS = {
    "ann_r50": {"channels": 32, "key_channels": 16},
    "galdv1_r50": {"channels": 32},
    "galdv2_r50": {"channels": 32},
    "sanet_r50": {},
    "segnext_t": {},
}


def network(name: str, **options) -> SegmentationModel:
    torch.manual_seed(3)
    return create_model(name, num_classes=4, **NETWORKS[name], **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_family_trains_on_a_backbone_of_timms(name):
    model = network(name, backbone=SMALL, in_channels=4)
    assert model.backbone.channels == (24, 40, 112, 320)
    images = torch.randn(2, 4, 113, 121)
    target = torch.randint(4, (2, 113, 121))
    loss = model.loss(model(images), target)
    loss.backward()
    silent = {
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    }
    assert not silent
    assert model.eval()(images)["out"].shape == (2, 4, 113, 121)
    assert model.predict(images).shape == (2, 113, 121)


@pytest.mark.parametrize(
    "backbone, output_stride, strides",
    [
        ("resnet18", 8, (4, 8, 8, 8)),
        ("resnet18", 16, (4, 8, 16, 16)),
        ("resnet18", 32, (4, 8, 16, 32)),
        ("convnext_atto", 8, (4, 8, 8, 8)),
        ("swin_tiny_patch4_window7_224", 8, (4, 8, 16, 32)),  # timm offers no other
        ("vit_tiny_patch16_224", 8, (16, 16, 16, 16)),
        ("mobilenetv3_small_050", 16, (4, 8, 16, 16)),
    ],
)
def test_maps_have_the_channels_and_strides_that_are_announced(backbone, output_stride, strides):
    features = TimmFeatures(backbone, output_stride).eval()
    assert (features.strides, len(features.mean), len(features.std)) == (strides, 3, 3)
    with torch.no_grad():
        maps = features(torch.randn(1, 3, 96, 160))
    found = [(x.shape[1], 96 // x.shape[2], 160 // x.shape[3]) for x in maps]
    assert found == [(c, s, s) for c, s in zip(features.channels, strides, strict=True)]


def test_a_network_of_three_stages_repeats_the_first():
    features = TimmFeatures("levit_128s").eval()
    assert features.channels == (128, 128, 256, 384)
    with torch.no_grad():
        first, again, *_ = features(torch.randn(1, 3, 224, 224))
    assert again is first
    with pytest.raises(ValueError, match="images of 224x224 only, got 96x96"):
        features(torch.randn(1, 3, 96, 96))


def test_names_that_timm_has_not_are_refused():
    with pytest.raises(ValueError, match=r"no network 'resnet1'; it has .*resnet101"):
        network("ann_r50", backbone="resnet1")
    with pytest.raises(TypeError, match="backbone must be a name or a module, got int"):
        network("sanet_r50", backbone=50)
    with pytest.raises(ValueError, match="returns 4 maps and has an attribute `channels`"):
        network("sanet_r50", backbone=torch.nn.Conv2d(3, 8, 1))
    with pytest.raises(ValueError, match="load the weights of a module before"):
        network("segnext_t", backbone=TimmFeatures(SMALL), pretrained=True)


@pytest.mark.parametrize("channels", [0, -1, 2.5, True, "3"])
def test_channels_of_images_are_checked(channels):
    with pytest.raises(ValueError, match="in_channels must be a positive integer"):
        network("segnext_t", in_channels=channels)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_of_other_channels(channels):
    models = [
        network("segnext_t", in_channels=channels),
        DeepLabAttention(3, widths=(4, 4, 4, 4, 4), channels=8, in_channels=channels),
        SANet(3, tiny_resnet("plain", ceil_mode=False, in_channels=channels), in_channels=channels),
    ]
    for model in models:
        x = torch.randn(1, channels, 65, 65)
        assert model.eval()(x)["out"].shape[2:] == (65, 65)
        with pytest.raises(ValueError, match=rf"\[B, {channels}, H, W\]"):
            model(torch.randn(1, channels + 1, 65, 65))
        with pytest.raises(ValueError, match=rf"\[B, {channels}, H, W\]"):
            model.predict(torch.randn(1, channels + 1, 65, 65))


@pytest.mark.parametrize("classes", [1000, 7])
def test_weights_of_a_whole_network_of_timms(tmp_path, classes):
    torch.manual_seed(1)
    published = timm.create_model(SMALL, num_classes=classes)
    file = tmp_path / "weights.safetensors"
    save_file({f"module.{k}": v for k, v in published.state_dict().items()}, file)
    model = network("segnext_t", backbone=SMALL, pretrained=str(file)).eval()
    published.eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        wanted = published.forward_intermediates(
            images, indices=[1, 2, 3, 4], intermediates_only=True
        )
        for got, expected in zip(model.backbone(images), wanted, strict=True):
            assert torch.equal(got, expected)


def test_weights_are_adapted_to_other_channels(tmp_path):
    published = timm.create_model(SMALL)
    file = tmp_path / "weights.pt"
    torch.save(published.state_dict(), file)
    model = network("ann_r50", backbone=SMALL, pretrained=file, in_channels=1)
    expected = published.conv_stem.weight.sum(1, keepdim=True)
    torch.testing.assert_close(model.backbone.net.conv_stem.weight, expected)


def test_a_file_of_another_network_is_refused_by_name(tmp_path):
    file = tmp_path / "weights.pt"
    state = timm.create_model(SMALL).state_dict()
    torch.save({k: v for k, v in state.items() if not k.startswith("blocks.3.0.")}, file)
    with pytest.raises(MappingError, match=r"blocks\.3\.0\."):
        network("segnext_t", backbone=SMALL, pretrained=file)
    with pytest.raises(MappingError):
        network("segnext_t", backbone="resnet18", pretrained=file)
    with pytest.raises(FileNotFoundError):
        network("segnext_t", backbone=SMALL, pretrained=tmp_path / "absent.pt")


@pytest.mark.parametrize("channels", [3, 4])
def test_weights_of_our_own_backbones(tmp_path, channels):
    torch.manual_seed(5)
    published = timm.create_model("resnet50")
    file = tmp_path / "resnet50.pt"
    torch.save(published.state_dict(), file)
    model = SANet(3, "resnet50", in_channels=channels, pretrained=file)
    state = model.backbone.state_dict()
    for key, value in published.state_dict().items():
        if key == "conv1.weight":
            value = timm.models.adapt_input_conv(channels, value)
        if not key.startswith("fc."):
            assert torch.equal(state[key], value), key


def test_weights_that_nobody_publishes_are_named():
    with pytest.raises(ValueError, match="give pretrained= the path of a file"):
        ANN(3, "resnet50", pretrained=True)
    with pytest.raises(ValueError, match="give pretrained= the path of a file"):
        SegNeXt("t", 3, pretrained=True)


def test_a_network_on_timms_backbone_is_saved_with_its_name(tmp_path):
    published = tmp_path / "weights.pt"
    torch.save(timm.create_model(SMALL).state_dict(), published)
    model = network("galdv2_r50", backbone=SMALL, in_channels=2, pretrained=published)
    model.save_pretrained(tmp_path / "saved")
    published.unlink()  # its weights are in the folder
    again = SegmentationModel.from_pretrained(tmp_path / "saved")
    assert isinstance(again, GALDv2) and again.in_channels == 2
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def test_another_number_of_classes_drops_the_classifiers():
    source = network("ann_r50", backbone=SMALL)
    torch.manual_seed(0)
    model = create_model("ann_r50", num_classes=9, backbone=SMALL, **NETWORKS["ann_r50"])
    before = model.cls.weight.clone()
    report = load_checkpoint(model, source.state_dict(), classes="drop")
    assert report.classes == (4, 9) and torch.equal(model.cls.weight, before)
    assert torch.equal(model.backbone.net.conv_stem.weight, source.backbone.net.conv_stem.weight)


def test_construction_without_memory():
    with torch.device("meta"):
        model = create_model("segnext_t", num_classes=4, backbone="convnext_tiny", in_channels=6)
    assert all(p.is_meta for p in model.parameters())
