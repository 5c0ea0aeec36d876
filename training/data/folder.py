"""A data set on disk: pairs of image and label file, by split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .info import DataInfo
from .labels import LabelMap, read_image, read_labels

Sample = tuple[tv_tensors.Image, tv_tensors.Mask]


class Pair(NamedTuple):
    """An image and its labels; either file may be missing, which `check_data` reports."""

    image: Path
    label: Path


class SegmentationSet(Protocol):
    """What training asks of a data set, on disk or generated."""

    info: DataInfo
    splits: tuple[str, ...]
    evaluation_split: str

    def split(self, name: str) -> Dataset[Sample]: ...


class SegmentationSplit(Dataset):
    """Samples of one split: image uint8 `[C, H, W]`, mask uint8 `[H, W]` of labels of training."""

    def __init__(self, pairs: Sequence[Pair], labels: LabelMap, channels: int = 3) -> None:
        self.pairs, self.labels, self.channels = list(pairs), labels, channels

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        image, mask = read_image(pair.image, self.channels), self.read_mask(index)
        if image.shape[1:] != mask.shape:
            raise ValueError(
                f"{pair.image} is {image.shape[1]}x{image.shape[2]}, its labels {pair.label} are "
                f"{mask.shape[0]}x{mask.shape[1]}; `attnops check` lists all such pairs"
            )
        return tv_tensors.Image(image), tv_tensors.Mask(mask)

    def read_mask(self, index: int) -> Tensor:
        return torch.from_numpy(self.labels(read_labels(self.pairs[index].label)))


class SegmentationFolder:
    """A data set on disk.

    Attributes:
        info: names and colours of its classes.
        splits: names of its splits.
        evaluation_split: the split that results are reported of.
        paths: the pairs of files of each split.
        labels: which label of training a number in a label file stands for.
        channels: of its images.
        root: its folder.
        layout: the name of the layout that was found.
    """

    def __init__(
        self,
        info: DataInfo,
        paths: Mapping[str, Sequence[Pair]],
        labels: LabelMap,
        root: Path,
        layout: str,
        evaluation_split: str = "val",
        channels: int = 3,
    ) -> None:
        self.channels = channels
        self.info, self.labels, self.root, self.layout = info, labels, root, layout
        self.paths = {name: list(pairs) for name, pairs in paths.items()}
        self.splits = tuple(self.paths)
        self.evaluation_split = evaluation_split if evaluation_split in paths else self.splits[-1]

    def split(self, name: str) -> SegmentationSplit:
        """The samples of the split `name`.

        Raises:
            ValueError: there is no such split.
        """
        return SegmentationSplit(self.paths[check_split(self, name)], self.labels, self.channels)


def check_split(data: SegmentationSet, name: str) -> str:
    if name not in data.splits:
        raise ValueError(f"{data.info.name} has no split {name!r}; it has {', '.join(data.splits)}")
    return name
