"""Using a network: labels by every protocol, saving and loading, clear errors."""

from __future__ import annotations

import pytest
import torch
from model_checks import shake
from torch.nn.functional import interpolate

from attnops.models import SegmentationModel, create_model

CLASSES = 7


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return shake(create_model("segnext_t", num_classes=CLASSES, seed=1)).eval()


def test_labels_are_those_of_the_logits(model):
    images = torch.randn(2, 3, 66, 75)
    with torch.no_grad():
        logits = model(images)["out"]
    labels = model.predict(images)
    assert labels.dtype == torch.int64
    best, second = logits.topk(2, dim=1).values.unbind(1)
    clear = best - second > 1e-5
    assert clear.float().mean() > 0.99
    assert torch.equal(labels[clear], logits.argmax(1)[clear])


def test_prediction_keeps_the_mode_and_leaves_no_graph(model):
    model.train()
    try:
        labels = model.predict(torch.randn(1, 3, 64, 64))
        assert model.training and not labels.requires_grad
    finally:
        model.eval()


def test_scales_and_flip_average_probabilities(model):
    images = torch.randn(1, 3, 64, 72)
    with torch.no_grad():
        total = torch.zeros(1, CLASSES, 64, 72)
        for scale in (0.75, 1.0, 1.5):
            size = [round(side * scale) for side in (64, 72)]
            resized = interpolate(images, size, mode="bilinear", align_corners=False)
            for flip in (False, True):
                out = model(resized.flip(3) if flip else resized)["out"].softmax(1)
                out = out.flip(3) if flip else out
                total += interpolate(out, (64, 72), mode="bilinear", align_corners=False)
    labels = model.predict(images, scales=(0.75, 1.0, 1.5), flip=True)
    assert (labels == total.argmax(1)).float().mean() > 0.99


def test_windows_cover_the_image(model):
    images = torch.randn(1, 3, 96, 131)
    with torch.no_grad():
        total, seen = torch.zeros(1, CLASSES, 96, 131), torch.zeros(96, 131)
        for top in (0, 32):
            for left in (0, 48, 67):
                part = (slice(top, top + 64), slice(left, left + 64))
                total[:, :, part[0], part[1]] += model(images[:, :, part[0], part[1]])["out"]
                seen[part] += 1
    labels = model.predict(images, window=64, stride=48)
    assert (labels == (total / seen).argmax(1)).float().mean() > 0.99
    whole = model.predict(images)
    assert torch.equal(model.predict(images, window=(200, 300)), whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "scales"),
        ({"scales": (0.0,)}, "positive"),
        ({"stride": 16}, "needs a window"),
        ({"window": 64, "stride": 65}, "stride at most the window"),
        ({"flip": 1}, "flip"),
    ],
)
def test_bad_protocols_are_refused(model, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        model.predict(torch.randn(1, 3, 64, 64), **options)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 64, 64), r"\[B, 3, H, W\]"),
        (torch.zeros(1, 4, 64, 64), r"\[B, 3, H, W\]"),
        (torch.zeros(1, 3, 31, 64), "at least 32x32, got 31x64"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "float"),
    ],
)
def test_bad_images_are_refused(model, images, message):
    with pytest.raises((ValueError, TypeError), match=message):
        model(images)


def test_saved_networks_come_back(model, tmp_path):
    pytest.importorskip("huggingface_hub")
    pytest.importorskip("safetensors")
    model.save_pretrained(tmp_path / "segnext")
    assert {"config.json", "model.safetensors"} <= {
        path.name for path in (tmp_path / "segnext").iterdir()
    }
    images = torch.randn(1, 3, 64, 64)
    again = SegmentationModel.from_pretrained(tmp_path / "segnext")
    assert type(again) is type(model)
    with torch.no_grad():
        assert torch.equal(again(images)["out"], model(images)["out"])


@pytest.mark.parametrize("classes", [0, -1, 2.5, True])
def test_bad_numbers_of_classes_are_refused(classes):
    with pytest.raises((ValueError, TypeError), match="num_classes"):
        create_model("segnext_t", num_classes=classes)
