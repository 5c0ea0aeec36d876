"""The backward of depthwise_gelu: in the file of the forward."""

from .forward import backward

__all__ = ["backward"]
