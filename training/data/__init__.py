"""Data sets for segmentation: layouts on disk, labels as classes, batches for training."""

from .info import DataInfo

__all__ = ["DataInfo"]
