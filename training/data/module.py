"""Batches of a data set for Lightning."""

from __future__ import annotations

from collections.abc import Sequence

import lightning
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from .augment import training_transform
from .check import check_data
from .folder import SegmentationSet
from .opening import open_data
from .order import AugmentedStream, SharedOut, StreamBatches, collate


class SegmentationData(lightning.LightningDataModule):
    """A data set as batches: augmented crops for training, whole images for validation and tests.

    Training batches are images uint8 `[B, 3, h, w]` and masks int64 `[B, h, w]`, without end: an
    epoch of Lightning has no end either, so a run is bounded by its steps. `steps_per_epoch` says
    how many make an epoch. What comes in step i depends on `seed` and i alone: not on workers, and
    not on whether the run was interrupted (`set_progress`). Validation and test batches hold one
    image of its own size.

    It distributes its samples over processes itself: give the Trainer
    `use_distributed_sampler=False`.

    Args:
        root: folder of the data set, or "shapes".
        layout: as of `open_data`, like `classes`, `class_map`, `images` and `masks`.
        crop_size: (height, width) of training samples; also the size of generated images.
        batch_size: of each process.
        num_workers: processes that load samples.
        scale_range: factors by which training images are scaled, drawn uniformly.
        cat_max_ratio: largest share of one class in a training sample.
        flip: mirror half of the training samples.
        photometric: change brightness, contrast, saturation and hue of training samples.
        base_size: (longer, shorter) side that images are resized to before they are scaled.
        train_split: split to train on.
        val_split: split for validation.
        test_split: split for tests; None: the one that results of this data set are reported of.
        limit: take only so many samples of every split.
        seed: of order and augmentation.
        check_files: `check` reads the files, those that have changed since.
        channels: of the images: 3, 1 (grey), or as many as the files have.

    Attributes:
        data: the data set; read when it is first asked for.
        info: its classes.
    """

    def __init__(
        self,
        root: str,
        layout: str = "auto",
        crop_size: tuple[int, int] = (256, 320),
        batch_size: int = 8,
        num_workers: int = 2,
        scale_range: tuple[float, float] = (0.5, 2.0),
        cat_max_ratio: float = 0.75,
        flip: bool = True,
        photometric: bool = True,
        base_size: tuple[int, int] | None = None,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str | None = None,
        limit: int | None = None,
        seed: int = 0,
        classes: Sequence[str] | str | int | None = None,
        class_map: dict[int, int] | None = None,
        images: str | None = None,
        masks: str | None = None,
        check_files: bool = True,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0 or (limit is not None and limit < 1):
            raise ValueError(
                f"batch_size and limit must be positive and num_workers at least 0, got "
                f"batch_size={batch_size}, limit={limit}, num_workers={num_workers}"
            )
        self.data: SegmentationSet = open_data(
            root, layout, classes, class_map, images, masks, tuple(crop_size), channels=channels
        )
        self.info = self.data.info
        self.batch_size, self.num_workers = batch_size, num_workers
        self.limit, self.seed, self.consumed_samples = limit, seed, 0
        self.train_split, self.val_split, self.check_files = train_split, val_split, check_files
        self.test_split = test_split or self.data.evaluation_split
        self.transform = training_transform(
            tuple(crop_size), tuple(scale_range), cat_max_ratio, flip, photometric, base_size
        )

    def split(self, name: str) -> Dataset:
        """The samples of a split, as many as `limit` allows."""
        split = self.data.split(name)
        if self.limit is None or self.limit >= len(split):
            return split
        return Subset(split, range(self.limit))

    @property
    def steps_per_epoch(self) -> int:
        """Training batches, of all processes, that hold as many samples as the data set."""
        return max(1, len(self.split(self.train_split)) // (self.batch_size * self._processes()[1]))

    def check(self) -> None:
        """Read the files to train on and to validate with, unless `check_files` is False.

        Raises:
            FaultyData: some are missing, damaged, mis-sized or labelled with unknown numbers.
        """
        if self.check_files:
            splits = dict.fromkeys((self.train_split, self.val_split))
            check_data(self.data, list(splits), self.limit).raise_faults()

    def class_pixels(self) -> list[int]:
        """Pixels of every class in the training split (of generated data: in some samples)."""
        report = check_data(self.data, [self.train_split], self.limit)
        return report.splits[self.train_split].pixels[: self.info.num_classes]

    def set_progress(self, consumed_samples: int) -> None:
        """Go on after so many training samples, of all processes; before the loader is made."""
        self.consumed_samples = consumed_samples

    def train_dataloader(self) -> DataLoader:
        split = self.split(self.train_split)
        rank, world_size = self._processes()
        batches = StreamBatches(
            len(split), self.batch_size, self.seed, rank, world_size, self.consumed_samples
        )
        return DataLoader(
            AugmentedStream(split, self.transform, self.seed),
            batch_sampler=batches,
            **self._loading(),
        )

    def val_dataloader(self) -> DataLoader:
        return self._evaluation(self.val_split)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation(self.test_split)

    def _evaluation(self, name: str) -> DataLoader:
        share = SharedOut(self.split(name), *self._processes())
        return DataLoader(share, batch_size=1, **self._loading())

    def _loading(self) -> dict[str, object]:
        workers = {"prefetch_factor": 4} if self.num_workers else {}
        # A generator of its own: making an iterator draws a number.
        generator = torch.Generator().manual_seed(self.seed)
        loading = {"num_workers": self.num_workers, "collate_fn": collate, "generator": generator}
        return loading | workers

    def _processes(self) -> tuple[int, int]:
        """Number of this process and how many there are."""
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
