"""Modules: weights plus calls of the ops."""

from .aggregation import ASPP, PyramidPooling
from .ann import AFNB, APNB
from .gald import CGNL, GALDBlock
from .local_distribution import DynamicLocalDistribution, LocalDistribution
from .mscan import MSCABlock
from .non_local import NonLocal
from .pyramid_attention import PyramidAttention
from .scale_attention import ScaleAttention
from .segnext import MSCA, Hamburger
from .squeeze_attention import SqueezeAttention

__all__ = [
    "AFNB",
    "APNB",
    "ASPP",
    "CGNL",
    "MSCA",
    "DynamicLocalDistribution",
    "GALDBlock",
    "Hamburger",
    "LocalDistribution",
    "MSCABlock",
    "NonLocal",
    "PyramidAttention",
    "PyramidPooling",
    "ScaleAttention",
    "SqueezeAttention",
]
