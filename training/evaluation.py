"""A network's labels against those of a data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from attnops.models import SegmentationModel

from .data.order import SharedOut, collate
from .metrics import SegmentationMetrics
from .protocol import Protocol


@dataclass
class Evaluation:
    """Scores (see `SegmentationMetrics.compute`), and how fast they came.

    Attributes:
        scores: over all processes.
        images: of all processes.
        seconds: that this process spent in the network, without reading files.
        images_per_second: of this process.
    """

    scores: dict[str, Tensor]
    images: int
    seconds: float
    images_per_second: float


def evaluate(
    network: SegmentationModel,
    split: Dataset,
    num_classes: int,
    protocol: Protocol = Protocol(),  # noqa: B008
    radii: Sequence[int] = (),
    num_workers: int = 0,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    done: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Label the images of a split and score them; metrics are summed over processes.

    Random numbers that a network draws (SegNeXt's bases) depend on `seed` and the image alone.

    Args:
        network: in any mode; it is evaluated.
        split: of a data set.
        num_classes: of the data set.
        protocol: scales, windows and the like.
        radii: of boundary scores.
        num_workers: processes that read images.
        seed: of random numbers.
        rank: number of this process.
        world_size: number of processes.
        done: called with the number of images that this process has done.
    """
    share = SharedOut(split, rank, world_size)
    loader = DataLoader(share, batch_size=1, num_workers=num_workers, collate_fn=collate)
    device = next(network.parameters()).device
    metrics = SegmentationMetrics(num_classes, radii=radii).to(device)
    seconds = 0.0
    for index, (images, masks) in enumerate(loader):
        torch.manual_seed(seed + index * world_size + rank)
        start = time.perf_counter()
        labels = protocol.labels(network, images[0])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds += time.perf_counter() - start
        metrics.update(labels[None], masks.to(device))
        done(index + 1)
    scores = {name: value.cpu() for name, value in metrics.compute().items()}
    return Evaluation(scores, len(split), seconds, len(share) / max(seconds, 1e-9))
