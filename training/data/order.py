"""In which order samples come: a function of the seed and of how many have gone before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2

from .folder import Sample
from .labels import IGNORED


class Place(NamedTuple):
    """A sample of the stream: the epoch that it is drawn in, and its number in the data set."""

    epoch: int
    index: int


class StreamBatches(Sampler[list[Place]]):
    """Batches without end: every epoch has each sample once, in an order of its own.

    Epochs follow each other without a break, within a batch too. With several processes each takes
    its part of every batch, so that all together see what one process with the whole batch sees.

    Args:
        samples: in the data set.
        batch_size: of this process.
        seed: of the order.
        rank: number of this process.
        world_size: number of processes.
        start: samples, of all processes, that have gone before.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        if samples < 1 or batch_size < 1 or start < 0:
            raise ValueError(
                f"a stream of batches needs samples and a batch size, got {samples} samples, "
                f"batch_size={batch_size}, start={start}"
            )
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.rank, self.world_size, self.start = rank, world_size, start

    def __iter__(self) -> Iterator[list[Place]]:
        position = self.start + self.rank * self.batch_size
        epoch, order = -1, np.empty(0, dtype=np.int64)
        while True:
            batch = []
            for place in range(position, position + self.batch_size):
                if place // self.samples != epoch:
                    epoch = place // self.samples
                    order = shuffled(self.samples, self.seed, epoch)
                batch.append(Place(epoch, int(order[place % self.samples])))
            yield batch
            position += self.batch_size * self.world_size


def shuffled(samples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a sort by random keys, which no version of NumPy changes."""
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    return np.argsort(random.random(samples), kind="stable")


class AugmentedStream(Dataset):
    """Samples at places of the stream, augmented by what (seed, epoch, index) alone determine."""

    def __init__(self, split: Dataset, transform: v2.Transform, seed: int) -> None:
        self.split, self.transform, self.seed = split, transform, seed

    def __getitem__(self, place: Place) -> Sample:
        sample = self.split[place.index]
        # Of PyTorch's generator; the process's own numbers go on as if nothing had been drawn.
        before = torch.random.get_rng_state()
        try:
            words = np.random.SeedSequence([self.seed, *place]).generate_state(2)
            torch.default_generator.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
            return self.transform(*sample)
        finally:
            torch.random.set_rng_state(before)


class SharedOut(Dataset):
    """Every `world_size`-th sample, for evaluation; all processes get equally many.

    Those that would have fewer get a first sample again with all its pixels ignored, which changes
    no metric: processes that wait for each other in every step stay together.
    """

    def __init__(self, split: Dataset, rank: int = 0, world_size: int = 1) -> None:
        self.split, self.rank, self.world_size = split, rank, world_size

    def __len__(self) -> int:
        return -(-len(self.split) // self.world_size)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = index * self.world_size + self.rank
        if place < len(self.split):
            return self.split[place]
        image, mask = self.split[0]
        return image, tv_tensors.Mask(torch.full_like(mask, IGNORED))


def collate(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Images uint8 `[B, 3, H, W]` and masks int64 `[B, H, W]`."""
    images = torch.stack([image.as_subclass(Tensor) for image, _ in samples])
    masks = torch.stack([mask.as_subclass(Tensor) for _, mask in samples])
    return images, masks.long()
