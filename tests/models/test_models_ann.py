"""ANN: numbers of the two published forms, their function in plain PyTorch, losses."""

from __future__ import annotations

import model_checks
import pytest
import torch
from model_checks import IGNORED, shake, targets, tiny_resnet
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, interpolate

pytest.importorskip("timm")

from attnops.models import ANN, create_model, list_models

FORMS = ("released", "mmseg")
CLASSES = 5


def tiny(form: str = "released", **options) -> ANN:
    stem, ceil_mode = ("deep", True) if form == "released" else ("v1c", False)
    options = {"channels": 24, "key_channels": 8} | options
    return shake(ANN(CLASSES, tiny_resnet(stem, ceil_mode=ceil_mode), form, **options))


def test_names():
    assert list_models("ann_*") == ["ann_r101", "ann_r50"]


@pytest.mark.parametrize(
    ("name", "form", "with_aux", "without"),
    [
        ("ann_r101", "released", 67_694_310, 62_964_435),
        ("ann_r101", "mmseg", 65_220_742, 62_856_051),
        ("ann_r50", "mmseg", 46_228_614, 43_863_923),
    ],
)
def test_numbers_of_parameters(name, form, with_aux, without):
    with torch.device("meta"):
        model = create_model(name, num_classes=19, form=form)
    assert model_checks.parameters(model) == (with_aux, without)


def test_parameters_of_the_parts():
    with torch.device("meta"):
        model = create_model("ann_r101", num_classes=19)
    counts = {name: model_checks.parameters(child)[0] for name, child in model.named_children()}
    assert counts == {
        "backbone": 42_623_936,
        "fusion": 9_971_456,
        "context": 10_359_296,
        "dropout": 0,
        "cls": 9_747,
        "aux": 4_729_875,
    }


def test_multiply_adds_of_the_whole_image():
    """2329.7 G as published, auxiliary head included.

    Of that the convolutions are counted, but not the attention's products; the blocks apply the
    value, the output convolution and the context's half of the fusing one to the anchors, not to
    the map, and APNB's shared projection runs once where the released code runs it for key and
    query.
    """
    with torch.device("meta"):
        counted = model_checks.multiply_adds(create_model("ann_r101", num_classes=19), 1024, 2048)
    positions, anchors = 129 * 257, 110
    aux = 9 * 1024 * 512 + 512 * 19
    products = 2 * anchors * (256 + 256)
    moved = sum(low * 256 + 256 * out + out * out for low, out in ((1024, 2048), (512, 512)))
    shared = 512 * 256
    published = counted + positions * (aux + products + moved + shared) - anchors * moved
    assert published == pytest.approx(2329.7e9, rel=1e-4)


def published_attention(core, low, high):
    """The released core, nothing folded."""
    key = core.key.bn(core.key.conv(low)).relu()
    projection = core.key if core.query is None else core.query
    query = projection.bn(projection.conv(high)).relu()
    value = core.value(low)

    def sample(x):
        return torch.cat([adaptive_avg_pool2d(x, n).flatten(2) for n in (1, 3, 6, 8)], dim=2)

    scores = query.flatten(2).mT @ sample(key) * key.shape[1] ** -0.5
    context = (scores.softmax(2) @ sample(value).mT).mT
    return core.out(context.unflatten(2, high.shape[2:]))


def published_logits(model, images):
    """Main logits at the map's size, block by block."""
    *_, low, high = model.backbone(images)
    fusion, block = model.fusion.fusion, model.context[-1]
    context = published_attention(model.fusion.attention, low, high)
    x = fusion.bn(fusion.conv(torch.cat([context, high], dim=1)))  # no ReLU
    for layer in model.context[:-1]:
        x = layer(x)
    context = published_attention(block.attention, x, x)
    x = block.fusion.bn(block.fusion.conv(torch.cat([context, x], dim=1))).relu()
    return model.cls(x)


@pytest.mark.parametrize("form", FORMS)
def test_the_function_is_the_published_one(form):
    model = tiny(form).double().eval()
    images = torch.randn(2, 3, 97, 81, dtype=torch.float64)
    small = published_logits(model, images)
    aligned = form == "released"
    wanted = interpolate(small, (97, 81), mode="bilinear", align_corners=aligned)
    outputs = model(images)
    assert set(outputs) == {"out"}
    torch.testing.assert_close(outputs["out"], wanted)
    other = interpolate(small, (97, 81), mode="bilinear", align_corners=not aligned)
    assert not torch.allclose(outputs["out"], other, atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_auxiliary_logits_are_those_of_stage_3(form):
    model = tiny(form, dropout=0.0).double().train()
    images = torch.randn(2, 3, 65, 65, dtype=torch.float64)
    stage3 = model.backbone(images)[2]
    assert torch.equal(model(images)["aux_small"], model.aux(stage3))


def test_no_context_at_the_beginning():
    """The output convolutions of both blocks start at zero."""
    model = ANN(CLASSES, tiny_resnet(), channels=24, key_channels=8)
    for core in (model.fusion.attention, model.context[-1].attention):
        assert not core.out.weight.any() and not core.out.bias.any()


def test_dropouts():
    released, mmseg = tiny("released"), tiny("mmseg")
    rates = [m.p for m in released.modules() if isinstance(m, nn.Dropout2d) and m.p]
    assert rates == [0.05] * 3  # both blocks and the auxiliary head
    assert (mmseg.dropout.p, mmseg.aux[3].p, mmseg.fusion.fusion.dropout.p) == (0.1, 0.1, 0.0)
    chosen = [m.p for m in tiny(dropout=0.3).modules() if isinstance(m, nn.Dropout2d) and m.p]
    assert chosen == [0.3] * 3


def test_only_the_released_form_has_biases_before_a_batch_norm():
    for form, biased in (("released", True), ("mmseg", False)):
        model = tiny(form)
        for conv in (model.fusion.fusion.conv, model.fusion.attention.query.conv, model.context[0]):
            assert (conv.bias is not None) == biased
        assert model.fusion.attention.value.bias is not None


def mined(logits, target, threshold=0.7, min_kept=100_000):
    """Hard example mining as released, on full-size logits."""
    losses = cross_entropy(logits, target, ignore_index=IGNORED, reduction="none")
    valid = target != IGNORED
    probabilities = torch.exp(-losses[valid])
    ordered = probabilities.sort().values
    limit = max(threshold, ordered[min(min_kept, len(ordered) - 1)].item())
    return losses[valid][probabilities < limit].mean()


@pytest.mark.parametrize("form", FORMS)
def test_loss(form):
    model = tiny(form).double()
    aligned = form == "released"
    outputs = model(torch.randn(2, 3, 65, 57, dtype=torch.float64))
    outputs["out_small"] = 3 * outputs["out_small"]  # so that some pixels are easy
    target = targets(2, CLASSES, 65, 57)
    main, aux = (
        interpolate(outputs[f"{key}_small"], (65, 57), mode="bilinear", align_corners=aligned)
        for key in ("out", "aux")
    )
    plain = cross_entropy(main, target, ignore_index=IGNORED)
    wanted = mined(main, target) if aligned else plain
    wanted = wanted + 0.4 * cross_entropy(aux, target, ignore_index=IGNORED)
    torch.testing.assert_close(model.loss(outputs, target), wanted)


def test_the_released_loss_leaves_easy_pixels_out():
    model = tiny().double()
    target = torch.zeros(1, 401, 401, dtype=torch.int64)  # more pixels than are kept at least
    small = torch.zeros(1, CLASSES, 51, 51, dtype=torch.float64)
    small[:, 0, :, :25] = 9.0  # easy on the left
    outputs = {"out_small": small, "aux_small": small}
    main = interpolate(small, (401, 401), mode="bilinear", align_corners=True)
    loss = model.loss(outputs, target)
    plain = cross_entropy(main, target)
    torch.testing.assert_close(loss, mined(main, target) + 0.4 * plain)
    assert loss > 1.5 * plain


@pytest.mark.parametrize("form", FORMS)
def test_training_step(form):
    model_checks.check_trains(tiny(form), torch.randn(2, 3, 71, 64), targets(2, CLASSES, 71, 64))


@pytest.mark.parametrize("form", FORMS)
def test_backends_and_layouts_agree(form):
    model_checks.check_backends_agree(tiny(form), torch.randn(2, 3, 75, 90))


def test_autocast():
    model_checks.check_autocast(tiny(), torch.randn(2, 3, 65, 65))


@model_checks.every_trace
def test_whole_graphs(trace):
    trace(tiny(), torch.randn(1, 3, 65, 72))


def test_the_full_network_runs():
    model = create_model("ann_r50", num_classes=3).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 65, 61))["out"].shape == (1, 3, 65, 61)


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form must be 'released' or 'mmseg'"):
        create_model("ann_r50", form="paper")
