"""Modules: weights plus calls of the ops."""

from .ann import AFNB, APNB
from .non_local import NonLocal
from .pyramid_attention import PyramidAttention

__all__ = ["AFNB", "APNB", "NonLocal", "PyramidAttention"]
