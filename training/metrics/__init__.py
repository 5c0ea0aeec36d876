"""How good labels are: intersection over union, accuracies, the fit of boundaries."""

from . import confusion
from .boundary import boundary_scores
from .scores import RADII, SegmentationMetrics, summary

__all__ = ["RADII", "SegmentationMetrics", "boundary_scores", "confusion", "summary"]
