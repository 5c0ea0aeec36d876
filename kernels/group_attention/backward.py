"""The backward of group_attention: in the file of the forward."""

from .forward import backward

__all__ = ["backward"]
