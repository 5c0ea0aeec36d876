"""Modules: weights plus calls of the ops."""

from .aggregation import ASPP, PyramidPooling
from .ann import AFNB, APNB
from .gald import CGNL, GALDBlock
from .local_distribution import DynamicLocalDistribution, LocalDistribution
from .non_local import NonLocal
from .pyramid_attention import PyramidAttention

__all__ = [
    "AFNB",
    "APNB",
    "ASPP",
    "CGNL",
    "DynamicLocalDistribution",
    "GALDBlock",
    "LocalDistribution",
    "NonLocal",
    "PyramidAttention",
    "PyramidPooling",
]
