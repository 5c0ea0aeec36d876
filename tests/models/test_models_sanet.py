"""SANet: numbers of the paper's table, what the outputs are made of, the three losses."""

from __future__ import annotations

import model_checks
import pytest
import torch
from model_checks import IGNORED, shake, targets, tiny_resnet
from torch.nn.functional import binary_cross_entropy, cross_entropy, interpolate

pytest.importorskip("timm")

from attnops.models import SANet, create_model, list_models
from attnops.models.sanet import presence

CLASSES = 5


def tiny(**options) -> SANet:
    return shake(SANet(CLASSES, tiny_resnet("plain", ceil_mode=False), **options))


def test_names():
    assert list_models("sanet_*") == ["sanet_effnetb7", "sanet_r101", "sanet_r50"]


def test_numbers_of_table_6():
    """55.5 M and 204.7 G, printed; the reading of the text that is nearest has these."""
    with torch.device("meta"):
        model = create_model("sanet_r101", num_classes=21)
        assert model_checks.parameters(model)[0] == 55_445_622
        assert model_checks.multiply_adds(model, 512, 512) == pytest.approx(205.3e9, rel=1e-3)
    assert sum(model_checks.parameters(head)[0] for head in model.heads) == pytest.approx(
        12.9e6, rel=2e-3
    )


def test_efficient_net_gives_four_stages():
    with torch.device("meta"):
        model = create_model("sanet_effnetb7", num_classes=21)
        maps = model.eval().backbone(torch.empty(1, 3, 128, 160))
    assert model.backbone.channels == (48, 80, 224, 640)
    assert [tuple(x.shape[1:]) for x in maps] == [
        (48, 32, 40),
        (80, 16, 20),
        (224, 16, 20),
        (640, 16, 20),
    ]


@pytest.mark.parametrize("aligned", [False, True])
def test_what_the_outputs_are_made_of(aligned):
    model = tiny(align_corners=aligned).double().train()
    images = torch.randn(2, 3, 97, 81, dtype=torch.float64)
    torch.manual_seed(1)
    outputs = model(images)
    torch.manual_seed(1)
    maps = model.backbone(images)
    heads = [head(x) for head, x in zip(model.heads, maps, strict=True)]
    dense = model.dense(maps[-1])

    def resized(x, size):
        return interpolate(x, size, mode="bilinear", align_corners=aligned)

    largest = heads[0].shape[2:]
    mask = model.mask(torch.cat([resized(x, largest) for x in heads], dim=1))
    torch.testing.assert_close(outputs["dense_small"], dense)
    torch.testing.assert_close(outputs["mask_small"], mask)
    torch.testing.assert_close(outputs["out"], resized(dense + heads[3], (97, 81)))


def test_heads_are_narrow_grouped_and_pooled_by_eight():
    model = tiny()
    for head, channels in zip(model.heads, (16, 32, 64, 128), strict=True):
        assert (head.pool, head.pool_size, head.activation) == ("max", 8, "relu")
        assert head.main[0].weight.shape == (channels // 4, channels // 2, 3, 3)


@pytest.mark.parametrize("dense_loss", ["prediction", "dense"])
def test_loss(dense_loss):
    model = tiny(dense_loss=dense_loss).double()
    target = targets(2, CLASSES, 65, 57)
    target[0][target[0] == 2] = 3  # a class that the first image lacks
    outputs = model(torch.randn(2, 3, 65, 57, dtype=torch.float64))

    def pixelwise(key):
        full = interpolate(outputs[f"{key}_small"], (65, 57), mode="bilinear")
        return cross_entropy(full, target, ignore_index=IGNORED)

    there = torch.tensor([[(labels == k).any() for k in range(CLASSES)] for labels in target])
    means = outputs["dense_small"].flatten(2).mean(2).sigmoid()
    category = binary_cross_entropy(means, there.double())
    wanted = (
        pixelwise("mask")
        + 0.2 * category
        + 0.8 * pixelwise("out" if dense_loss == "prediction" else "dense")
    )
    torch.testing.assert_close(model.loss(outputs, target), wanted)


def test_what_is_predicted_is_trained():
    """The loss pulls each channel of the prediction up where, and only where, its class is."""
    model = tiny().double().train()
    target = targets(2, CLASSES, 65, 57)
    outputs = model(torch.randn(2, 3, 65, 57, dtype=torch.float64))
    small = outputs["out_small"]
    (grad,) = torch.autograd.grad(model.loss(outputs, target), small)
    full = interpolate(small.detach(), (65, 57), mode="bilinear").requires_grad_()
    wanted = 0.8 * cross_entropy(full, target, ignore_index=IGNORED)
    (pulled,) = torch.autograd.grad(wanted, full)
    for k in range(CLASSES):
        assert (pulled[:, k][target == k] < 0).all()
        torch.testing.assert_close(grad[:, k].sum(), pulled[:, k].sum())


def test_unknown_dense_loss():
    with pytest.raises(ValueError, match="dense_loss must be 'prediction' or 'dense', got 'mask'"):
        tiny(dense_loss="mask")


def test_presence():
    target = torch.tensor([[[0, 2], [IGNORED, 2]], [[IGNORED, IGNORED], [IGNORED, IGNORED]]])
    found = presence(target, torch.empty(2, 3), IGNORED)
    assert found.tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_training_step():
    """S4 reaches the loss through the mask, as every head."""
    model_checks.check_trains(tiny(), torch.randn(2, 3, 97, 75), targets(2, CLASSES, 97, 75))


def test_backends_and_layouts_agree():
    model_checks.check_backends_agree(tiny(), torch.randn(2, 3, 75, 97))


def test_autocast():
    model_checks.check_autocast(tiny(), torch.randn(2, 3, 96, 96))


@model_checks.every_trace
def test_whole_graphs(trace):
    trace(tiny(), torch.randn(1, 3, 75, 96))


@pytest.mark.parametrize(
    "options", [{"pool": "average"}, {"activation": "sigmoid"}, {"squeeze_channels": 4}]
)
def test_options_of_the_heads_change_the_function(options):
    images = torch.randn(1, 3, 65, 65)
    torch.manual_seed(0)
    wanted = tiny().eval()(images)["out"]
    torch.manual_seed(0)
    assert not torch.allclose(tiny(**options).eval()(images)["out"], wanted)
