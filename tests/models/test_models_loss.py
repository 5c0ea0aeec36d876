"""Losses of all networks: targets that fit, validation, nothing labelled, memory."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from tiny_networks import CLASSES, FAMILIES, SIZE, tiny_network
from torch.nn.functional import cross_entropy, interpolate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from attnops.models import DeepLabAttention, SegNeXt, create_model
from attnops.models.deeplab import subsample
from attnops.models.sanet import category_loss

IGNORED = 255
BATCH = 2


def images_and_target(size=SIZE, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH, 3, *size, generator=generator)
    target = torch.randint(CLASSES, (BATCH, *size), generator=generator)
    target[:, :7, 3:50] = IGNORED
    return images, target


class LargestTensor(TorchDispatchMode):
    """Counts the elements of the largest floating-point tensor that an op returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                self.elements = max(self.elements, x.numel())
        return result


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request):
    """A network and what it returned in training."""
    model = tiny_network(request.param)
    with torch.no_grad():
        return model, model(images_and_target()[0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [True, False])
def test_a_target_of_another_size_is_refused(family, training):
    model = tiny_network(family).train(training)
    images, _ = images_and_target()
    wanted = rf"{type(model).__name__}.*target must be \[2, {SIZE[0]}, {SIZE[1]}\]"
    for resize in (True, False):
        with torch.no_grad():
            outputs = model(images, resize=resize)
        for shape in (SIZE[::-1], (SIZE[0] // 2, SIZE[1] // 2), (SIZE[0], SIZE[1] + 1)):
            with pytest.raises(ValueError, match=wanted):
                model.loss(outputs, torch.zeros(BATCH, *shape, dtype=torch.int64))


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (torch.zeros(BATCH + 1, *SIZE, dtype=torch.int64), ValueError, "target must be"),
        (torch.zeros(BATCH, 1, *SIZE, dtype=torch.int64), ValueError, r"give target\[:, 0\]"),
        (torch.zeros(*SIZE, dtype=torch.int64), ValueError, "target must be"),
        (torch.zeros(BATCH, *SIZE), TypeError, "float32; expected class numbers"),
        (np.zeros((BATCH, *SIZE), np.int64), TypeError, "ndarray"),
        (torch.zeros(BATCH, *SIZE, dtype=torch.int64, device="meta"), ValueError, "one device"),
        (torch.full((BATCH, *SIZE), CLASSES), ValueError, "neither a class"),
    ],
)
def test_other_bad_targets_are_refused(trained, target, error, message):
    model, outputs = trained
    with pytest.raises(error, match=message):
        model.loss(outputs, target)


def test_outputs_that_are_no_dict_are_refused(trained):
    model, _ = trained
    target = images_and_target()[1]
    with pytest.raises(TypeError, match=r"got Tensor; call model\.loss\(model\(images\), target\)"):
        model.loss(torch.zeros(BATCH, CLASSES, *SIZE), target)
    with pytest.raises(ValueError, match=r"lack '[a-z]*_small'.*got nothing"):
        model.loss({}, target)


@pytest.mark.parametrize("family", FAMILIES)
def test_copied_outputs_know_the_size_of_the_images(family):
    model = tiny_network(family)
    images, target = images_and_target()
    with torch.no_grad():
        outputs = model(images, resize=False)
        wanted = model.loss(outputs, target)
        for again in (copy.deepcopy(outputs), pickle.loads(pickle.dumps(outputs))):
            assert torch.equal(model.loss(again, target), wanted)
            with pytest.raises(ValueError, match="target must be"):
                model.loss(again, target[:, 1:])


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(getattr(module, "drop_path", None), float):
            module.drop_path = 0.0
    return model


def published(family, model, maps, target, training, label_smoothing=0.0):
    """The loss, written out from maps by name."""
    options = {"ignore_index": IGNORED, "label_smoothing": label_smoothing}

    def plain(key):
        full = interpolate(maps[key], SIZE, mode="bilinear", align_corners=model.align_corners)
        return cross_entropy(full, target, **options)

    if family == "deeplab":
        return sum(
            cross_entropy(x, subsample(target, x.shape[2:]), **options) for x in maps.values()
        )
    if family == "sanet":
        means = maps["dense"].mean((2, 3))
        there = torch.stack([(target == k).flatten(1).any(1) for k in range(CLASSES)], 1)
        category = torch.nn.functional.binary_cross_entropy_with_logits(means, there.to(means))
        return plain("mask") + 0.2 * category + 0.8 * plain("out")
    # Fewer pixels than hard example mining keeps at least: all count but the easiest one.
    main = plain("out")
    if family in ("ann", "galdv1", "galdv2"):
        full = interpolate(maps["out"], SIZE, mode="bilinear", align_corners=model.align_corners)
        losses = cross_entropy(full, target, ignore_index=IGNORED, reduction="none")
        smooth = cross_entropy(full, target, reduction="none", **options)[target != IGNORED]
        probability = torch.exp(-losses[target != IGNORED])
        main = smooth[probability < probability.max().clamp(min=0.7)].mean()
    return main + 0.4 * plain("aux") if training and "aux" in maps else main


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [True, False])
def test_loss_in_training_and_in_evaluation(family, training):
    model = without_dropout(tiny_network(family)).double().train(training)
    images, target = images_and_target()
    images = images.double()
    with torch.no_grad():
        maps = model.logits(images)
        wanted = published(family, model, maps, target, training)
        for resize in (True, False):
            loss = model.loss(model(images, resize=resize), target)
            torch.testing.assert_close(loss, wanted)
        wanted = published(family, model, maps, target, training, 0.2)
        loss = model.loss(model(images), target, label_smoothing=0.2)
        torch.testing.assert_close(loss, wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_that_went_through_a_pytree_serve_the_loss(family):
    """As DistributedDataParallel with find_unused_parameters takes them apart."""
    model = tiny_network(family).eval()
    images, target = images_and_target()
    with torch.no_grad():
        outputs = model(images)
        again = tree_map(lambda x: x.clone(), outputs)
        assert list(again) == ["out"]
        assert torch.equal(model.loss(again, target), model.loss(outputs, target))
    with pytest.raises(ValueError, match="target must be"):
        model.loss(again, target[:, 1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resized_map_alone_gives_the_validation_loss(family):
    """As where the outputs of an exported network come as a plain dict."""
    model = tiny_network(family).double().eval()
    images, target = images_and_target()
    with torch.no_grad():
        outputs = model(images.double())
        wanted = model.loss(outputs, target)
        plain = {"out": outputs["out"]}
        if family in ("sanet", "deeplab"):  # their losses are of other maps
            with pytest.raises(ValueError, match="resize=False"):
                model.loss(plain, target)
        else:
            torch.testing.assert_close(model.loss(plain, target), wanted)
            with pytest.raises(ValueError, match="target must be"):
                model.loss(plain, target[:, 1:])


@pytest.mark.parametrize("family", ["ann", "galdv2"])
def test_a_training_loss_needs_the_auxiliary_map(family):
    model = tiny_network(family)
    images, target = images_and_target()
    outputs = dict(model(images))
    del outputs["aux_small"]
    with pytest.raises(ValueError, match=r"lack 'aux_small'"):
        model.loss(outputs, target)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [True, False])
def test_the_loss_line_makes_no_map_of_all_classes(family, training):
    classes = 600  # so that no map of features is as large as the one in question
    model = tiny_network(family, classes=classes).train(training)
    images, target = images_and_target()
    full = BATCH * classes * SIZE[0] * SIZE[1]
    with LargestTensor() as largest:
        loss = model.loss(model(images), target)
        if training:
            loss.backward()
    assert 0 < largest.elements <= full / 2
    with LargestTensor() as largest, torch.no_grad():
        model.eval()(images)["out"]
    assert largest.elements == full


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_a_dict_with_the_resized_map(family):
    model = tiny_network(family).eval()
    images, _ = images_and_target()
    with torch.no_grad():
        small = model.logits(images)["out"]
        wanted = interpolate(small, SIZE, mode="bilinear", align_corners=model.align_corners)
        readings = [
            lambda o: o["out"],
            lambda o: o.get("out"),
            lambda o: dict(o)["out"],
            lambda o: {**o}["out"],
            lambda o: next(iter(o.values())),
            lambda o: dict(o.items())["out"],
            lambda o: o.copy()["out"],
            lambda o: (o | {})["out"],
            lambda o: ({} | o)["out"],
            lambda o: o.setdefault("out", 3),
            lambda o: o.pop("out"),
            lambda o: o.popitem()[1],
            lambda o: type(o)((k, o[k]) for k in o)["out"],
            lambda o: tree_map(lambda x: x.clone(), o)["out"],
        ]
        for read in readings:
            outputs = model(images)
            assert list(outputs) == ["out"] and "out" in outputs and len(outputs) == 1
            assert torch.equal(read(outputs), wanted)
        assert "None" not in repr(model(images)) and model(images) != {"out": None}
        assert model(images).get("aux") is None and isinstance(model(images), dict)


def test_the_resized_map_is_made_as_in_the_forward():
    """Gradients, autocast and inference mode are the forward's, not the reader's."""
    model = tiny_network("segnext")
    images = images_and_target()[0]
    outputs = model(images)
    with torch.no_grad():
        assert outputs["out"].requires_grad
    with torch.no_grad():
        outputs = model(images)
    assert not outputs["out"].requires_grad
    with torch.inference_mode():
        outputs = model(images)
    assert outputs["out"].is_inference()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, inside = model(images), model(images)["out"]
    assert outputs["out"].dtype == inside.dtype


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [True, False])
def test_nothing_labelled_is_no_loss(family, training):
    model = tiny_network(family).train(training)
    images, target = images_and_target()
    nothing = torch.full_like(target, IGNORED)
    for options in ({}, {"avg_non_ignore": False}, {"label_smoothing": 0.1}):
        loss = model.loss(model(images), nothing, **options)
        assert loss.item() == 0.0
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert grads and all(not grad.any() for grad in grads)  # NaN counts as something
    half = model.bfloat16()
    loss = half.loss(half(images.bfloat16()), nothing)
    assert loss.item() == 0.0 and loss.dtype == torch.bfloat16


def test_a_pixel_between_the_grid_is_no_loss_for_deeplab():
    """A target with labels, none of them at a position of the scores."""
    model = tiny_network("deeplab")
    images, target = images_and_target()
    labels = torch.full_like(target, IGNORED)
    labels[:, 3, 3] = 1
    assert model.loss(model(images), labels).item() == 0.0


@pytest.mark.parametrize("family", ["segnext", "ann_mmseg", "sanet"])
def test_averages_over_all_pixels(family):
    model = without_dropout(tiny_network(family)).double().eval()
    images, target = images_and_target()
    part = (target != IGNORED).double().mean()
    assert 0.5 < part < 0.99
    with torch.no_grad():
        outputs = model(images.double())
        ours = model.loss(outputs, target)
        theirs = model.loss(outputs, target, avg_non_ignore=False)
        category = 0.0
        if family == "sanet":
            means = outputs.maps["dense"].mean((2, 3))
            category = 0.2 * category_loss(means, target, IGNORED)
    torch.testing.assert_close(theirs - category, (ours - category) * part)


def test_samples_without_labels_do_not_count_for_the_categories():
    logits = torch.randn(3, CLASSES, dtype=torch.float64, requires_grad=True)
    target = torch.randint(CLASSES, (3, 8, 9))
    target[1] = IGNORED
    loss = category_loss(logits, target, IGNORED)
    kept = logits.detach()[[0, 2]].clone().requires_grad_()
    wanted = category_loss(kept, target[[0, 2]], IGNORED)
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    wanted.backward()
    assert not logits.grad[1].any()
    torch.testing.assert_close(logits.grad[[0, 2]], kept.grad)


@pytest.mark.parametrize("classes", [1, 0, -3, 2.0, "19", True, None, np.float32(3)])
def test_fewer_than_two_classes_are_refused(classes):
    makers = [
        lambda: create_model("segnext_t", num_classes=classes),
        lambda: create_model("ann_r50", num_classes=classes),
        lambda: create_model("sanet_r50", num_classes=classes),
        lambda: create_model("deeplab_attention", num_classes=classes),
        lambda: create_model("galdv1_r50", num_classes=classes),
        lambda: create_model("galdv2_r50", num_classes=classes),
        lambda: SegNeXt("t", classes),
        lambda: DeepLabAttention(classes),
    ]
    with torch.device("meta"):
        for make in makers:
            with pytest.raises(ValueError, match="num_classes must be an integer of at least 2"):
                make()


def test_numbers_of_numpy_are_numbers_of_classes():
    with torch.device("meta"):
        model = create_model("segnext_t", num_classes=np.int64(7))
    assert model.classify.out_channels == 7 and type(model.config["num_classes"]) is int


@pytest.mark.parametrize("family", FAMILIES)
def test_class_weights(family):
    """Weights of 2 leave weighted means as they are; a class of weight 0 does not count."""
    model = without_dropout(tiny_network(family)).double().eval()
    images, target = images_and_target()
    with torch.no_grad():
        outputs = model(images.double())
        plain = model.loss(outputs, target)
        twice = model.loss(outputs, target, class_weight=torch.full((CLASSES,), 2.0))
        weight = torch.tensor([1.0, 0.5, 2.0, 0.0, 3.0], dtype=torch.float64)
        weighted = model.loss(outputs, target, class_weight=weight)
        nothing = model.loss(outputs, target, class_weight=torch.zeros(CLASSES))
    mined = family in ("ann", "galdv1", "galdv2")
    torch.testing.assert_close(twice, 2 * plain if mined else plain)
    if family == "sanet":  # the third part is of images, which have no weight
        category = 0.2 * category_loss(outputs.maps["dense"].mean((2, 3)), target, IGNORED)
        torch.testing.assert_close(nothing, category)
    else:
        assert nothing.item() == 0.0
    if family == "segnext":
        full = interpolate(outputs.maps["out"], SIZE, mode="bilinear", align_corners=False)
        wanted = cross_entropy(full, target, weight, ignore_index=IGNORED)
        torch.testing.assert_close(weighted, wanted)
