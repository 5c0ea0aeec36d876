"""DeepLab with attention to scale: numbers, sizes, merging, labels at the scores' resolution."""

from __future__ import annotations

import model_checks
import pytest
import torch
from model_checks import IGNORED, targets
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from attnops.models import DeepLabAttention, create_model
from attnops.models.backbones.vgg import VGG16
from attnops.models.deeplab import subsample

CLASSES = 5
SCALES = (1.0, 0.75, 0.5)


def tiny(**options) -> DeepLabAttention:
    widths = {"widths": (4, 6, 8, 10, 12), "channels": 16, "hidden_channels": 8}
    model = DeepLabAttention(CLASSES, **(widths | options))
    nn.init.normal_(model.cls.weight, std=1.0)
    return model


def test_numbers():
    """Giga multiply-adds at 321: 50.93 + 29.00 + 13.21 of the scales, 23.80 of the attention."""
    with torch.device("meta"):
        model = create_model("deeplab_attention", num_classes=21)
        trunk = model_checks.parameters(model.backbone)[0] + model_checks.parameters(model.field)[0]
        assert trunk == 20_483_904
        assert trunk + model_checks.parameters(model.cls)[0] == 20_505_429
        assert model_checks.parameters(model.attention)[0] == 14_157_827
        assert model_checks.multiply_adds(model, 321, 321) == pytest.approx(116.9e9, rel=1e-3)
        for scale, giga in zip(SCALES, (50.93, 29.00, 13.21), strict=True):
            one = create_model("deeplab_attention", scales=(scale,), reduce="mean")
            assert model_checks.multiply_adds(one, 321, 321) == pytest.approx(giga * 1e9, rel=1e-3)


@pytest.mark.parametrize(
    ("scales", "source", "count"),
    [((1.0, 0.5), "concat", 9_438_722), ((1.0, 0.75, 0.5), "first", 4_720_643)],
)
def test_numbers_of_other_attention_heads(scales, source, count):
    with torch.device("meta"):
        model = create_model("deeplab_attention", scales=scales, source=source)
    assert model_checks.parameters(model.attention)[0] == count


def test_layers_of_the_trunk():
    with torch.device("meta"):
        layers = VGG16().features
    convolutions = {i: m for i, m in enumerate(layers) if isinstance(m, nn.Conv2d)}
    assert list(convolutions) == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert [m.dilation[0] for m in convolutions.values()] == [1] * 10 + [2] * 3
    pools = [(i, m.stride) for i, m in enumerate(layers) if isinstance(m, nn.MaxPool2d)]
    assert pools == [(4, 2), (9, 2), (16, 2), (23, 1), (30, 1)]
    mean = layers[31]
    assert isinstance(mean, nn.AvgPool2d) and mean.count_include_pad
    field = DeepLabAttention(2, channels=4, widths=(1, 1, 1, 1, 1)).field
    assert (field[0].dilation, field[0].kernel_size) == ((12, 12), (3, 3))
    assert field[3].kernel_size == (1, 1)


@pytest.mark.parametrize(
    ("image", "scores"), [(321, (41, 31, 21)), (513, (65, 49, 33)), (320, (41, 31, 21))]
)
def test_sizes_of_the_scores(image, scores):
    with torch.device("meta"):
        outputs = tiny()(torch.empty(1, 3, image, image))
    assert outputs["out_small"].shape[2:] == (scores[0], scores[0])
    for i, side in enumerate(scores):
        assert outputs[f"scale{i}_small"].shape[2:] == (side, side)


def written_out(model, images):
    """Every scale's scores, and their merger, by the definition."""

    def resized(x, size):
        return interpolate(x, size, mode="bilinear", align_corners=True)

    features = []
    for scale in model.scales:
        size = [int((n - 1) * scale) + 1 for n in images.shape[2:]]
        features.append(model.field(model.backbone(resized(images, size))))
    scores = [model.cls(x) for x in features]
    size = features[0].shape[2:]
    stacked = torch.stack([resized(x, size) for x in scores], dim=1)
    logits = model.attention.head(torch.cat([resized(x, size) for x in features], dim=1))
    return scores, (logits.softmax(1).unsqueeze(2) * stacked).sum(1), stacked


def test_the_function():
    model = tiny().double().eval()
    images = torch.randn(2, 3, 81, 97, dtype=torch.float64)
    _, merged, _ = written_out(model, images)
    wanted = interpolate(merged, (81, 97), mode="bilinear", align_corners=True)
    torch.testing.assert_close(model(images)["out"], wanted)


@pytest.mark.parametrize(("reduce", "merge"), [("mean", "mean"), ("max", "amax")])
def test_merging_without_weights(reduce, merge):
    model = tiny(reduce=reduce).double().eval()
    images = torch.randn(1, 3, 81, 65, dtype=torch.float64)
    weighted = tiny().double().eval()
    weighted.load_state_dict(weighted.state_dict() | model.state_dict())
    *_, stacked = written_out(weighted, images)
    found = model(images, resize=False)["out_small"]
    torch.testing.assert_close(found, getattr(stacked, merge)(dim=1))


def test_subsampled_labels():
    target = torch.arange(321).expand(2, 321, 321)
    assert torch.equal(subsample(target, (41, 41)), target[:, ::8, ::8])
    assert torch.equal(subsample(target, (21, 21)), target[:, ::16, ::16])
    nearest = [round(i * 32 / 3) for i in range(31)]  # never halfway
    assert subsample(target, (31, 31))[0, 0].tolist() == nearest
    assert subsample(target, (1, 1)).tolist() == [[[0]], [[0]]]


def test_loss():
    """One cross-entropy a scale and one of the merger, each at its own resolution."""
    model = tiny(dropout=0.0).double()
    images = torch.randn(2, 3, 81, 65, dtype=torch.float64)
    target = targets(2, CLASSES, 81, 65)
    scores, merged, _ = written_out(model, images)
    wanted = sum(
        cross_entropy(x, subsample(target, x.shape[2:]), ignore_index=IGNORED)
        for x in (merged, *scores)
    )
    torch.testing.assert_close(model.loss(model(images), target), wanted)


def test_dropout_is_elementwise_and_an_option():
    rates = [m.p for m in tiny(dropout=0.2).modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.2] * 3
    assert not any(isinstance(m, nn.Dropout2d) for m in tiny().modules())


def test_training_step():
    model_checks.check_trains(tiny(), torch.randn(2, 3, 73, 64), targets(2, CLASSES, 73, 64))


def test_backends_and_layouts_agree():
    model_checks.check_backends_agree(tiny(), torch.randn(2, 3, 75, 97))


def test_autocast():
    model_checks.check_autocast(tiny(dropout=0.0), torch.randn(2, 3, 65, 65))


@model_checks.every_trace
def test_whole_graphs(trace):
    trace(tiny(), torch.randn(1, 3, 75, 96))


def test_one_scale_is_the_plain_network():
    model = tiny(scales=(1.0,)).eval()
    images = torch.randn(1, 3, 65, 65)
    small = model.cls(model.field(model.backbone(images)))
    torch.testing.assert_close(model(images, resize=False)["out_small"], small)


@pytest.mark.parametrize("scales", [(), (0.5, 1.0), (1.5, 1.0), (1.0, 0.0)])
def test_scales_out_of_order_or_range_are_refused(scales):
    with pytest.raises(ValueError, match="largest first"):
        create_model("deeplab_attention", scales=scales)
