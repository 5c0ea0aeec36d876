"""Data sets for segmentation: layouts on disk, labels as classes, batches for training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .check import CheckReport, FaultyData, check_data
from .folder import Pair, SegmentationFolder, SegmentationSplit
from .info import DataInfo
from .opening import LAYOUTS, open_data
from .shapes import Shapes

if TYPE_CHECKING:
    from .module import SegmentationData

__all__ = [
    "LAYOUTS",
    "CheckReport",
    "DataInfo",
    "FaultyData",
    "Pair",
    "SegmentationData",
    "SegmentationFolder",
    "SegmentationSplit",
    "Shapes",
    "check_data",
    "open_data",
]


def __getattr__(name: str) -> Any:
    """`SegmentationData` brings Lightning, which evaluation and prediction do not wait for."""
    if name == "SegmentationData":
        from .module import SegmentationData

        return SegmentationData
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
