"""Networks call their parts wherever a user did something to them, with the same result."""

from __future__ import annotations

import copy

import meddling
import pytest
import torch
from meddling import check_close, convolutions, leaves, prepared, with_part
from tiny_networks import FAMILIES, SIZE, tiny_network
from torch import nn
from torch.nn.functional import conv2d, cross_entropy, interpolate

pytest.importorskip("timm")

from attnops.models import SegNeXt
from attnops.models.backbones.timm_features import TimmFeatures

pytestmark = pytest.mark.usefixtures("without_onednn")

CALLED = (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.Dropout2d)

every_family = pytest.mark.parametrize("family", FAMILIES)
both_modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])


def images(batch=1, size=(32, 40)):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, 3, *size, dtype=torch.float64, generator=generator)


def images_for(family, batch=1):
    """As small as the network takes them."""
    return images(batch, SIZE) if family == "galdv1" else images(batch)


def network(family, training=False):
    model = tiny_network(family)
    if family == "segnext":  # one block a stage: PyTorch's depthwise convolutions are slow
        for stage in model.backbone.stages:
            stage.blocks = stage.blocks[:1]
    return prepared(model, training=training)


def maps(model, x):
    """Every map that the network computes in its mode, on the grid of the network."""
    return model.logits(x)


def check_maps(found, wanted):
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        check_close(found[key], value, key)


@both_modes
@every_family
def test_forward_hooks_fire_and_change_nothing(family, training):
    """What they keep is not written over by what follows."""
    model, x = network(family, training), images_for(family, 2 if training else 1)
    with torch.no_grad():
        wanted = maps(copy.deepcopy(model), x)
        parts = leaves(model)
        if not training:
            parts = {n: part for n, part in parts.items() if not n.startswith("aux")}
        with meddling.watched(parts) as seen:
            check_maps(maps(model, x), wanted)
    for part, outputs in seen.items():
        assert outputs, f"{part} was not called"
        for kept, at_the_time in outputs:
            assert torch.equal(kept, at_the_time), f"what {part} returned was changed"


@pytest.mark.parametrize(  # PyTorch's depthwise convolutions are slow in float64
    "family", [pytest.param(f, marks=pytest.mark.slow if f == "segnext" else ()) for f in FAMILIES]
)
def test_full_backward_hooks_change_no_gradient(family):
    model, x = network(family, training=True), images_for(family, 2)
    gradients = []
    for hooked in (False, True):
        twin, fired = copy.deepcopy(model), set()
        if hooked:
            for part, child in twin.named_modules():
                child.register_full_backward_pre_hook(lambda *_: None)
                child.register_full_backward_hook(
                    lambda *_, part=part, fired=fired: fired.add(part)
                )
        found = maps(twin, x)
        sum((value * value.detach().cos()).sum() for value in found.values()).backward()
        gradients.append({n: p.grad for n, p in twin.named_parameters()})
        assert not hooked or fired >= set(leaves(twin))
    for name, wanted in gradients[0].items():
        scale = max(wanted.abs().max().item(), 1e-3 * _largest(gradients[0]))
        assert (gradients[1][name] - wanted).abs().max() <= 1e-8 * scale, name


def _largest(gradients):
    return max(x.abs().max().item() for x in gradients.values())


@every_family
def test_adapters_around_all_convolutions_count(family):
    model, x = network(family), images_for(family)
    adapted, merged = model, model
    for part in convolutions(model):
        if part.startswith("aux"):
            continue
        adapted = _exchange(adapted, part, meddling.Adapter, first=adapted is model)
    merged = copy.deepcopy(adapted)
    for part in [n for n, m in adapted.named_modules() if isinstance(m, meddling.Adapter)]:
        merged = _exchange(merged, part, meddling.merged)
    with torch.no_grad():
        check_maps(maps(adapted, x), maps(merged, x))


def _exchange(model, part, change, first=False):
    if first:
        return with_part(model, part, change)
    parent, _, last = part.rpartition(".")
    setattr(model.get_submodule(parent), last, change(model.get_submodule(part)))
    return model


@pytest.mark.parametrize("family", ["segnext", "ann"])
def test_pruned_weights_count(family):
    """Of every third convolution of the head."""
    model, x = network(family), images_for(family)
    change = meddling.REPARAMETRISATIONS["prune"]
    with torch.no_grad():
        for part in [n for n in convolutions(model) if "aux" not in n and "backbone" not in n][::3]:
            wanted = maps(with_part(model, part, meddling.with_effective_weight(change)), x)
            check_maps(maps(with_part(model, part, change), x), wanted)


@pytest.mark.parametrize(
    "options",
    [{"kernel_size": 1, "stride": 2}, {"kernel_size": 3, "padding": 1, "dilation": 1}],
    ids=str,
)
def test_a_classifier_of_another_kind(options):
    model = network("segnext")
    model.classify = nn.Conv2d(256, 5, dtype=torch.float64, **options)
    x = images(size=(64, 96))
    features = model.decoder(model.backbone(x))
    conv = model.classify
    wanted = conv2d(features, conv.weight, conv.bias, conv.stride, conv.padding)
    check_close(maps(model, x)["out"], wanted)
    out = model(x)["out"]
    check_close(out, interpolate(wanted, (64, 96), mode="bilinear", align_corners=False))


def test_predict_calls_hooked_parts():
    """In evaluation, whatever mode the network is in."""
    model = tiny_network("segnext").train()
    x = images(size=(64, 96)).float()
    wanted, called = model.predict(x), set()
    for part in leaves(model).values():
        part.register_forward_hook(lambda part, *_: called.add(type(part)))
    assert (model.predict(x) == wanted).float().mean() > 0.999
    assert called >= {nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm}


@pytest.mark.parametrize("decoder", ["nl", "cc", "ema", "mlp"])
def test_hooks_in_every_decoder(decoder):
    torch.manual_seed(0)
    model = prepared(SegNeXt("t", 5, decoder=decoder), training=False).decoder
    widths, sides = (32, 64, 160, 256), (12, 6, 3, 2)
    features = [torch.randn(1, c, n, n).double() for c, n in zip(widths, sides, strict=True)]
    with torch.no_grad():
        wanted = model(features)
        with meddling.watched(leaves(model)) as seen:
            check_close(model(features), wanted)
    assert all(
        outputs for part, outputs in seen.items() if type(model.get_submodule(part)) in CALLED
    )


def test_efficientnet_writes_over_nothing():
    model = TimmFeatures("efficientnet_b0")
    for child in model.modules():
        child.register_full_backward_hook(lambda *_: None)
    with meddling.watched(leaves(model)) as seen:
        out = model(torch.randn(2, 3, 32, 32, requires_grad=True))
        sum(x.square().mean() for x in out).backward()
    for part, outputs in seen.items():
        for kept, at_the_time in outputs:
            assert torch.equal(kept, at_the_time), part


@pytest.mark.slow
def test_training_with_hooks_everywhere():
    """The loss through all hooks is the one without."""
    model, x = network("segnext", training=True), images(2)
    target = torch.randint(5, (2, 32, 40))
    losses = []
    for hooked in (False, True):
        twin = copy.deepcopy(model)
        if hooked:
            for child in twin.modules():
                child.register_forward_hook(lambda *_: None)
                child.register_full_backward_hook(lambda *_: None)
        loss = twin.loss(twin(x), target)
        loss.backward()
        losses.append(loss.detach())
    check_close(*losses)
    small = maps(copy.deepcopy(model), x)["out"]
    wanted = cross_entropy(interpolate(small, (32, 40), mode="bilinear"), target)
    check_close(losses[0], wanted.detach())
