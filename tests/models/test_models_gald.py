"""GALD: numbers of the released network, its function in plain PyTorch, the second version."""

from __future__ import annotations

import model_checks
import pytest
import torch
from model_checks import shake, targets, tiny_resnet
from torch.nn.functional import cross_entropy, interpolate, unfold

pytest.importorskip("timm")

from attnops.models import GALDv1, GALDv2, create_model, list_models

CLASSES, CHANNELS = 5, 32
AGGREGATIONS = ("cgnl", "aspp", "psp", "nl")
SIDE = 113  # a map of 15


def tiny(version: int, ga: str | None = None, **options):
    options |= {} if ga is None else {"ga": ga}
    backbone = tiny_resnet("deep", "full")
    cls = GALDv1 if version == 1 else GALDv2
    return shake(cls(CLASSES, backbone, channels=CHANNELS, **options))


def test_names():
    names = ["galdv1_r101", "galdv1_r50", "galdv2_r101", "galdv2_r50"]
    assert list_models("gald*") == names


@pytest.mark.parametrize(
    ("name", "with_aux", "without", "giga", "rounded_down"),
    [
        ("galdv1_r50", 52_402_662, 47_672_787, 209.96, 203.8),
        ("galdv1_r101", 71_394_790, 66_664_915, 290.0, 281.4),
    ],
)
def test_numbers_of_the_released_network(name, with_aux, without, giga, rounded_down):
    with torch.device("meta"):
        model = create_model(name, num_classes=19)
        assert model_checks.parameters(model) == (with_aux, without)
        assert model_checks.multiply_adds(model, 512, 512) == pytest.approx(giga * 1e9, rel=1e-3)
        model.backbone.maxpool.ceil_mode = False
        assert model_checks.multiply_adds(model, 512, 512) == pytest.approx(
            rounded_down * 1e9, rel=1e-3
        )


def test_the_block_adds_what_the_paper_says_it_adds():
    with torch.device("meta"):
        block = create_model("galdv1_r50").head.block
    counts = {name: model_checks.parameters(child)[0] for name, child in block.named_children()}
    assert counts == {"down": 6_144, "aggregation": 410_624, "distribution": 18_432}


@pytest.mark.parametrize(("ga", "count"), [("aspp", 15_863_296), ("psp", 23_073_792)])
def test_aggregations_of_the_backbones_map(ga, count):
    with torch.device("meta"):
        first = create_model("galdv1_r50", ga=ga).head.block[0]
        second = create_model("galdv2_r50", ga=ga).head.aggregation
    assert model_checks.parameters(first)[0] == model_checks.parameters(second)[0] == count


def test_the_second_version_near_its_published_size():
    """66.8 M in table VI; the text does not determine it, this reading has 65.8 M."""
    with torch.device("meta"):
        model = create_model("galdv2_r101", num_classes=19)
    assert model_checks.parameters(model)[1] == 65_839_059
    assert model_checks.parameters(model.head.distribution)[0] == 1_572_864


def resized(x, size):
    return interpolate(x, size, mode="bilinear", align_corners=True)


def test_the_released_function():
    model = tiny(1).double().eval()
    images = torch.randn(2, 3, SIDE, 121, dtype=torch.float64)
    head = model.head
    x = model.backbone(images)[-1]
    y = head.conva(x)
    down = head.block.aggregation(head.block.down(y))
    xg = resized(down, y.shape[2:])
    gate = torch.sigmoid(resized(head.block.distribution.gate(xg), xg.shape[2:]))
    refined = head.convb(2 * xg + gate * xg)
    # The backbone's map comes first.
    small = head.cls(head.bottleneck(torch.cat([x, refined], dim=1)))
    torch.testing.assert_close(model(images)["out"], resized(small, images.shape[2:]))


def test_other_aggregations_use_the_equations_residual():
    model = tiny(1, "aspp").double().eval()
    images = torch.randn(1, 3, SIDE, SIDE, dtype=torch.float64)
    x = model.backbone(images)[-1]
    aggregation, distribution = model.head.block
    xg = aggregation(x)
    gate = torch.sigmoid(resized(distribution.gate(xg), xg.shape[2:]))
    joined = torch.cat([x, xg + gate * xg], dim=1)
    small = model.head.cls(model.head.bottleneck(joined))
    torch.testing.assert_close(model(images)["out"], resized(small, images.shape[2:]))


def test_the_second_version_written_out():
    model = tiny(2, dilation=2).double().eval()
    images = torch.randn(2, 3, 65, 73, dtype=torch.float64)
    head = model.head
    x = model.backbone(images)[-1]
    local = head.reduce(x)
    joined = torch.cat([head.aggregation(x), local], dim=1)
    attention = head.distribution
    query, key, value = (c(joined) for c in (attention.query, attention.key, attention.value))
    windows = [
        unfold(m, 5, dilation=2, padding=4).unflatten(1, (CHANNELS, 25)) for m in (key, value)
    ]
    scores = torch.einsum("bcn,bckn->bkn", query.flatten(2), windows[0])
    refined = torch.einsum("bkn,bckn->bcn", scores.softmax(1), windows[1]).view_as(query)
    # The distributed features come first.
    small = head.cls(head.bottleneck(torch.cat([refined, local], dim=1)))
    torch.testing.assert_close(model(images)["out"], resized(small, images.shape[2:]))


def test_defaults_of_the_second_version():
    with torch.device("meta"):
        head = create_model("galdv2_r50").head
    window = head.distribution
    assert (window.kernel_size, window.dilation, window.border) == (5, 6, "zero")
    assert type(head.aggregation).__name__ == "ASPP"


def written_out(main, aux, target, threshold=0.7, min_kept=100_000, aux_weight=0.4):
    """The released loss on full-size logits: mining by a loop-free definition, and the auxiliary
    head's plain mean.
    """
    valid = (target != 255).flatten()
    labels = target.flatten()[valid]
    log_p = main.log_softmax(1).movedim(1, 3).flatten(0, 2)[valid]
    losses = -log_p[torch.arange(len(labels)), labels]
    p = torch.exp(-losses)
    at = p.sort().values[min(min_kept, len(p) - 1)]
    kept = losses[p < max(threshold, at)]
    return kept.mean() + aux_weight * cross_entropy(aux, target, ignore_index=255)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("easy", [False, True], ids=["threshold decides", "number decides"])
def test_loss(version, easy):
    """On more pixels than are kept at least, of which few or most are easy."""
    side, small = 401, 51
    model = tiny(version).double()
    target = torch.randint(CLASSES, (1, small, small)).repeat_interleave(8, 1)
    target = target.repeat_interleave(8, 2)[:, :side, :side].clone()
    target[:, :50, :300] = 255
    # Logits that lean to the right class, more or less.
    right = interpolate(target[None].double(), (small, small)).clamp(max=CLASSES - 1)[0].long()
    lean = torch.rand(1, 1, small, small) * 4 + (8 if easy else 0)
    main = torch.randn(1, CLASSES, small, small) + lean * torch.nn.functional.one_hot(
        right, CLASSES
    ).movedim(3, 1)
    maps = {"out_small": main.double(), "aux_small": torch.randn(1, CLASSES, 26, 26).double()}
    full = [resized(m, (side, side)) for m in maps.values()]
    wanted = written_out(*full, target)
    torch.testing.assert_close(model.loss(maps, target), wanted)
    # Each number shows in the value.
    decides = [{"min_kept": n} for n in (90_000, 110_000)]
    decides = decides if easy else [{"threshold": t} for t in (0.69, 0.71)]
    for other in ({"aux_weight": 0.41}, *decides):
        assert (written_out(*full, target, **other) - wanted).abs() > 1e-5 * wanted


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("ga", AGGREGATIONS)
def test_training_step(version, ga):
    images = torch.randn(2, 3, SIDE, 119)
    model_checks.check_trains(tiny(version, ga), images, targets(2, CLASSES, SIDE, 119))


@pytest.mark.parametrize("version", [1, 2])
def test_backends_and_layouts_agree(version):
    model_checks.check_backends_agree(tiny(version), torch.randn(1, 3, 121, 130))


@pytest.mark.parametrize("version", [1, 2])
def test_autocast(version):
    model_checks.check_autocast(tiny(version), torch.randn(2, 3, SIDE, SIDE))


@pytest.mark.parametrize("version", [1, 2])
@model_checks.every_trace
def test_whole_graphs(version, trace):
    trace(tiny(version), torch.randn(1, 3, SIDE, 120))


def test_the_auxiliary_head_runs_in_training_only():
    model = tiny(2, "cgnl")
    images = torch.randn(2, 3, 65, 65)
    assert set(model(images)) == {"out", "out_small", "aux_small"}
    assert set(model.eval()(images)) == {"out"}


def test_smallest_image():
    """Images of 111 have maps of 15, those of 110 of 14."""
    model = tiny(1).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 111, 111))["out"].shape == (1, CLASSES, 111, 111)
        assert model.backbone(torch.randn(1, 3, 110, 111))[-1].shape[2:] == (14, 15)
    with pytest.raises(ValueError, match="at least 111x111, got 110x111"):
        model(torch.randn(1, 3, 110, 111))


@pytest.mark.parametrize("name", ["galdv1_r50", "galdv2_r50"])
def test_unknown_aggregation_is_refused(name):
    with pytest.raises(ValueError, match="ga must be 'cgnl' or"):
        create_model(name, ga="ocr")


@pytest.mark.parametrize(
    ("backbone", "least"),
    [
        ("tf_efficientnet_lite0.in1k", 113),
        ("resnet18.a1_in1k", 113),
        ("convnext_atto.d2_in1k", 120),
    ],
)
def test_smallest_images_of_other_backbones(backbone, least):
    model = GALDv1(CLASSES, backbone, channels=CHANNELS).eval()
    assert model.smallest_side == least
    with torch.no_grad():
        assert model.predict(torch.randn(1, 3, least, least + 1)).shape == (1, least, least + 1)
    with pytest.raises(ValueError, match=f"at least {least}x{least}"):
        model(torch.randn(1, 3, least - 1, least))
