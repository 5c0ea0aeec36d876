"""Scores against hand-made matrices, other people's implementations and a slow definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torchmetrics
from peers import import_mmseg, import_peer

from attnops.training.metrics import RADII, SegmentationMetrics, boundary_scores, summary


def random_labels(shape, classes, seed, ignored=0.1):
    random = np.random.default_rng(seed)
    target = random.integers(0, classes, shape)
    labels = np.where(random.random(shape) < 0.6, target, random.integers(0, classes, shape))
    target = np.where(random.random(shape) < ignored, 255, target)
    return torch.from_numpy(labels), torch.from_numpy(target)


def test_by_hand():
    target = torch.tensor([[[0, 0, 0, 0], [1, 1, 255, 255], [3, 3, 3, 255]]])
    labels = torch.tensor([[[0, 0, 1, 3], [1, 0, 1, 2], [3, 3, 1, 0]]])
    metrics = SegmentationMetrics(4)
    metrics.update(labels, target)
    found = metrics.compute()
    assert found["confusion"].tolist() == [[2, 1, 0, 1], [1, 1, 0, 0], [0] * 4, [0, 1, 0, 2]]
    assert found["IoU"][[0, 1, 3]].tolist() == [2 / 5, 1 / 4, 2 / 4] and found["IoU"][2].isnan()
    assert found["mIoU"].item() == pytest.approx((2 / 5 + 1 / 4 + 2 / 4) / 3)
    assert found["accuracy"].item() == 5 / 9
    assert found["mean_accuracy"].item() == pytest.approx((1 / 2 + 1 / 2 + 2 / 3) / 3)
    assert "boundary" not in found


def test_nothing_labelled_is_nan_and_an_absent_class_that_is_predicted_counts():
    nothing = summary(torch.zeros(3, 3, dtype=torch.int64))
    assert all(nothing[name].isnan() for name in ("mIoU", "accuracy", "mean_accuracy"))
    matrix = torch.tensor([[3, 0, 1], [0, 0, 0], [0, 0, 0]])
    assert summary(matrix)["IoU"][2] == 0 and summary(matrix)["class_accuracy"][2].isnan()


@pytest.mark.parametrize("classes", [2, 7])
def test_torchmetrics_agrees(classes):
    options = {"ignore_index": 255, "num_classes": classes, "average": None}
    theirs = torchmetrics.classification.MulticlassJaccardIndex(**options)
    accuracy = torchmetrics.classification.MulticlassAccuracy(**options)
    ours = SegmentationMetrics(classes)
    for seed in range(3):
        pair = random_labels((2, 13, 17), classes, seed)
        for metric in (theirs, accuracy, ours):
            metric.update(*pair)
    found = ours.compute()
    torch.testing.assert_close(found["IoU"].float(), theirs.compute())
    torch.testing.assert_close(found["class_accuracy"].float(), accuracy.compute())


def test_mmsegmentation_agrees(monkeypatch):
    import_mmseg(monkeypatch)
    iou_metric = import_peer("mmseg.evaluation.metrics.iou_metric").IoUMetric
    results, ours = [], SegmentationMetrics(9)
    for seed in range(3):
        labels, target = random_labels((19, 23), 8, seed)  # class 8 occurs nowhere
        results.append(iou_metric.intersect_and_union(labels, target, 9, 255))
        ours.update(labels[None], target[None])
    areas = [sum(parts) for parts in zip(*results, strict=True)]
    theirs = iou_metric.total_area_to_metrics(*areas, metrics=["mIoU"])
    found = ours.compute()
    np.testing.assert_allclose(found["IoU"].numpy(), theirs["IoU"], rtol=1e-6)
    np.testing.assert_allclose(found["class_accuracy"].numpy(), theirs["Acc"], rtol=1e-6)
    assert found["accuracy"].item() == pytest.approx(float(theirs["aAcc"]), rel=1e-6)


def slow_boundary(mask):
    """Pixels that differ from the one to the right, below, or below and right."""
    height, width = mask.shape
    found = set()
    for y, x in itertools.product(range(height), range(width)):
        others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
        inside = [(v, u) for v, u in others if v < height and u < width]
        if any(mask[y, x] != mask[v, u] for v, u in inside):
            found.add((y, x))
    return found


def slow_scores(labels, target, classes, radii):
    table = np.zeros((len(radii), classes))
    for row, radius in enumerate(radii):
        for label in range(classes):
            found = slow_boundary((labels == label) & (target != 255))
            true = slow_boundary(target == label)

            def share(of, near, radius=radius):
                close = [any(math.dist(p, q) <= radius for q in near) for p in of]
                return sum(close) / len(close) if of else 1.0

            precision, recall = share(found, true), share(true, found)
            table[row, label] = (
                2 * precision * recall / (precision + recall) if precision + recall else 0.0
            )
    return table


def blobs(seed, size=(23, 31), classes=4):
    """Labels in patches, and the same with borders shifted and one patch changed."""
    random = np.random.default_rng(seed)
    target = random.integers(0, classes, (4, 4)).repeat(6, 0).repeat(8, 1)[: size[0], : size[1]]
    labels = np.roll(target, (seed % 4, -seed % 3), (0, 1)).copy()
    labels[5:9, 3:20] = random.integers(0, classes)
    target = target.copy()
    target[15:20, 10:14] = 255
    return labels, target


@pytest.mark.parametrize("seed", range(4))
def test_boundaries_by_their_definition(seed):
    labels, target = blobs(seed)
    radii = (1, 3, 5)
    ours = boundary_scores(torch.from_numpy(labels), torch.from_numpy(target), 5, radii)
    np.testing.assert_allclose(ours.numpy(), slow_scores(labels, target, 5, radii), atol=1e-12)
    assert ours[:, 4].tolist() == [1, 1, 1]  # in neither
    assert 0 < ours[0, :4].min() < 1


def test_boundaries_of_thin_and_empty_masks():
    target = torch.zeros(9, 40, dtype=torch.int64)
    target[:, 20] = 1
    labels = torch.zeros_like(target)
    scores = boundary_scores(labels, target, 3, RADII)
    assert scores.tolist() == [[0, 0, 1]] * 4  # 0 has a boundary in one of the two alone
    labels[:, 25] = 1  # columns 24 and 25 against 19 and 20
    assert boundary_scores(labels, target, 3, (3, 4, 5))[:, 1].tolist() == [0, 0.5, 1]
    assert boundary_scores(labels, torch.full_like(target, 255), 3, RADII) is None
    assert boundary_scores(target, target, 2, RADII).eq(1).all()


def test_mean_of_boundaries_over_images():
    radii = (1, 3)
    pairs = [tuple(map(torch.from_numpy, blobs(seed))) for seed in range(3)]
    empty = (pairs[0][0], torch.full_like(pairs[0][1], 255))  # does not count
    metrics = SegmentationMetrics(4, radii=radii)
    labels, targets = (torch.stack(parts) for parts in zip(*pairs, empty, strict=True))
    metrics.update(labels, targets)
    wanted = torch.stack([boundary_scores(*pair, 4, radii) for pair in pairs]).mean(0)
    torch.testing.assert_close(metrics.compute()["boundary"], wanted, rtol=0, atol=1e-11)


def test_processes_add_up_exactly():
    """The states of two metrics, summed as torchmetrics sums them over processes."""
    whole, parts = SegmentationMetrics(4, radii=(1, 3)), []
    for part in range(2):
        metrics = SegmentationMetrics(4, radii=(1, 3))
        for seed in range(2 * part, 2 * part + 2):
            labels, target = map(torch.from_numpy, blobs(seed))
            metrics.update(labels[None], target[None])
            whole.update(labels[None], target[None])
        parts.append(metrics)
    joined = SegmentationMetrics(4, radii=(1, 3))
    for name, reduce in joined._reductions.items():
        setattr(joined, name, reduce(torch.stack([getattr(part, name) for part in parts])))
    joined._update_count = 1
    for name, value in whole.compute().items():
        assert torch.equal(joined.compute()[name], value), name
