"""Data sets for segmentation: layouts on disk, labels as classes, batches for training."""

from .check import CheckReport, FaultyData, check_data
from .folder import Pair, SegmentationFolder, SegmentationSplit
from .info import DataInfo
from .module import SegmentationData
from .opening import LAYOUTS, open_data
from .shapes import Shapes

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
