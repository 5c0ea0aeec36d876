"""Prediction: beside training, on compiled networks, every protocol, and what it refuses."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from tiny_networks import CLASSES, FAMILIES, SIZE, tiny_network
from torch import nn
from torch.nn.functional import interpolate

SCALES, WINDOW, STRIDE = (0.75, 1.0, 1.5), (113, 111), (60, 37)


def images_of(count: int, size=SIZE, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_in_training_predicts_as_in_evaluation(family):
    model = tiny_network(family)
    model(images_of(2))  # statistics of its own
    state = copy.deepcopy(model.state_dict())
    labels = model.predict(images_of(2, seed=2))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert torch.equal(labels, model.eval().predict(images_of(2, seed=2)))


def test_threads_predict_while_another_trains(monkeypatch):
    """No module changes its mode, no statistics but those of the steps, all labels right."""
    torch.manual_seed(0)
    model = tiny_network("sanet")
    frozen = copy.deepcopy(model)
    images = [images_of(1, (64, 72), seed) for seed in range(4)]
    wanted = [copy.deepcopy(frozen).eval().predict(x) for x in images]
    switched, wrong, failed = [], [], []

    def spy(self, mode=True):
        switched.append((type(self).__name__, mode))
        return self

    monkeypatch.setattr(nn.Module, "train", spy)
    stop = threading.Event()

    def guarded(work):
        def run():
            try:
                while not stop.is_set():
                    work()
            except Exception as error:
                failed.append(error)

        return threading.Thread(target=run)

    def predict():
        for x, labels in zip(images, wanted, strict=True):
            if not torch.equal(model.predict(x), labels):
                wrong.append(x)

    def predict_the_trained_one():
        trained.predict(images[0])

    trained = copy.deepcopy(model)
    threads = [guarded(predict), guarded(predict), guarded(predict_the_trained_one)]
    for thread in threads:
        thread.start()
    steps = 6
    try:
        optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
        for _ in range(steps):
            target = torch.randint(CLASSES, (2, *SIZE))
            optimizer.zero_grad()
            trained.loss(trained(images_of(2)), target).backward()
            optimizer.step()
            assert all(module.training for module in trained.modules())
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed and not wrong and not switched
    counts = {int(v) for k, v in trained.state_dict().items() if k.endswith("batches_tracked")}
    assert counts == {steps}
    for key, value in frozen.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def averaged(model, images):
    """Scales, mirrored images and windows, written out pixel by pixel of a plain accumulator."""
    height, width = images.shape[2:]
    total = torch.zeros(len(images), CLASSES, height, width, dtype=images.dtype)
    for scale in SCALES:
        size = (round(height * scale), round(width * scale))
        scaled = interpolate(images, size, mode="bilinear", align_corners=False)
        for mirrored in (False, True):
            view = scaled.flip(3) if mirrored else scaled
            logits = torch.zeros(len(images), CLASSES, *size, dtype=images.dtype)
            seen = torch.zeros(size, dtype=images.dtype)
            for top in starts(size[0], WINDOW[0], STRIDE[0]):
                for left in starts(size[1], WINDOW[1], STRIDE[1]):
                    rows, columns = slice(top, top + WINDOW[0]), slice(left, left + WINDOW[1])
                    logits[:, :, rows, columns] += model(view[:, :, rows, columns])["out"]
                    seen[rows, columns] += 1
            logits = logits / seen
            logits = logits.flip(3) if mirrored else logits
            corners = model.align_corners
            logits = interpolate(logits, images.shape[2:], mode="bilinear", align_corners=corners)
            total += logits.softmax(1) / (2 * len(SCALES))
    return total


def starts(length, side, step):
    places, place = [], 0
    while place + side < length:
        places.append(place)
        place += step
    return [*places, max(length - side, 0)]


@pytest.mark.parametrize("family", ["segnext", "galdv1"])
def test_windows_scales_and_flips_together(family):
    model = tiny_network(family).double().eval()
    if family == "segnext":
        nn.init.normal_(model.classify.weight, std=3.0)  # logits that the softmax does not flatten
    images = images_of(1, (150, 160)).double()
    with torch.no_grad():
        wanted = averaged(model, images)
    labels = model.predict(images, scales=SCALES, flip=True, window=WINDOW, stride=STRIDE)
    best, second = wanted.topk(2, dim=1).values.unbind(1)
    clear = best - second > 1e-9
    assert clear.float().mean() > 0.999
    assert torch.equal(labels[clear], wanted.argmax(1)[clear])
    # Windows overlap: without the division by how many cover a pixel there are other labels.
    assert (labels != model.predict(images)).any()


def counting_backend():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        calls = []
        graphs[-1].calls = calls

        def run(*arguments):
            calls.append(1)
            return graph.forward(*arguments)

        return run

    return graphs, backend


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("way", ["torch.compile", "in place"])
def test_a_compiled_network_predicts_compiled(way, training):
    torch._dynamo.reset()
    graphs, backend = counting_backend()
    model = tiny_network("sanet").train(training)
    images = images_of(1, (64, 96))
    wanted = model.predict(images)
    if way == "in place":
        model.compile(backend=backend, fullgraph=True)
        compiled = model
    else:
        compiled = torch.compile(model, backend=backend, fullgraph=True)
    for _ in range(2):
        labels = compiled.predict(images)
        assert (labels == wanted).float().mean() > 0.999
    assert len(graphs) == 1 and len(graphs[0].calls) == 2
    assert model.training == training
    if way != "in place":
        graphs.clear()
        model.predict(images)  # of the network inside, nobody asked for a compiled one
        assert not graphs


def test_predict_is_a_method_like_others():
    model = tiny_network("segnext").eval()
    bound = model.predict
    assert bound.__self__ is model and bound.__name__ == "predict"
    assert "sliding" in type(model).predict.__doc__
    images = images_of(1, (64, 64))
    assert torch.equal(type(model).predict(model, images), bound(images))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (
            np.zeros((1, 3, 64, 64), np.float32),
            TypeError,
            "ndarray; make one with torch.from_numpy",
        ),
        ([torch.zeros(3, 64, 64)], TypeError, "list; make one with .* torch.stack"),
        (torch.zeros(3, 64, 64), ValueError, r"give images\[None\]"),
        (torch.zeros(64, 64), ValueError, r"\[B, 3, H, W\], got \[64, 64\]"),
        (torch.zeros(1, 1, 64, 64), ValueError, r"\[B, 3, H, W\], got \[1, 1, 64, 64\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, "uint8; expected float images"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int64), TypeError, "expected float images"),
        (torch.zeros(1, 3, 64, 64, device="meta"), ValueError, "images are on meta"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"window": 64}, {"scales": (2.0,), "flip": True}])
def test_images_that_are_refused(images, error, message, options):
    model = no_forward(tiny_network("segnext"))
    with pytest.raises(error, match=message) as caught:
        model.predict(images, **options)
    assert str(caught.value).startswith("SegNeXt.predict: ")


def no_forward(model):
    """Any forward is one too many: what is refused is refused before."""

    def fail(*arguments):
        raise AssertionError("a forward ran")

    model.backbone.forward = fail
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_another_float_type_are_converted(dtype):
    model = tiny_network("segnext").eval()
    images = images_of(1, (64, 96))
    rounded = images.to(dtype)
    assert torch.equal(model.predict(rounded), model.predict(rounded.float()))
    wide = model.double()
    assert torch.equal(wide.predict(images), wide.predict(images.double()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scales": (1.0, 0.25)},
            "images must be at least 32x32.* 64x96 at scale 0.25 come to 16x24",
        ),
        ({"window": 16}, "64x96 in windows of 16x16 come to 16x16"),
        (
            {"window": (64, 30), "scales": (2.0,)},
            "64x96 at scale 2 in windows of 64x30 come to 64x30",
        ),
        ({"scales": (float("inf"),)}, "scales must be positive, finite numbers, got inf"),
        ({"scales": (1.0, float("nan"))}, "finite numbers, got nan"),
        ({"scales": (0,)}, "finite numbers, got 0"),
        ({"scales": (-1.0,)}, "finite numbers, got -1"),
        ({"scales": ("1.5",)}, "scales must be a number, got '1.5'"),
        ({"scales": "1.5"}, "scales must be a sequence of numbers, got '1.5'"),
        ({"scales": 1.5}, "scales must be a sequence of numbers, got 1.5"),
        ({"scales": ()}, "scales must name at least one"),
        ({"scales": (True,)}, "scales must be a number, got True"),
        ({"stride": 5}, "needs a window"),
        ({"window": 64, "stride": 0}, "positive"),
        ({"window": 0}, "positive"),
        ({"window": "64"}, "window must be"),
    ],
)
def test_protocols_that_are_refused(options, message):
    model = no_forward(tiny_network("segnext"))
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        model.predict(images_of(1, (64, 96)), **options)
    assert "predict: " in str(caught.value)


def test_scales_may_be_any_iterable():
    model = tiny_network("segnext").eval()
    images = images_of(1, (64, 96))
    wanted = model.predict(images, scales=(0.5, 1.0))
    assert torch.equal(model.predict(images, scales=iter([0.5, 1])), wanted)


def test_an_empty_batch_has_no_labels():
    model = tiny_network("segnext").eval()
    labels = model.predict(images_of(1, (64, 96))[:0])
    assert labels.shape == (0, 64, 96) and labels.dtype == torch.int64
