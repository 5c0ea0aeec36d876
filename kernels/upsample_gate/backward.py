"""The backward of upsample_gate: in the file of the forward."""

from .forward import backward

__all__ = ["backward"]
