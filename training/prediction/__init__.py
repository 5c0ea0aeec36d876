"""Labels of files: what is read, what is written, pictures of what a network attends to."""

from .attention import attention_maps, draw_attention
from .exported import ExportedNetwork, is_exported, open_exported
from .inputs import Source, find_sources, read_frames
from .pictures import overlay, write_labels

__all__ = [
    "ExportedNetwork",
    "Source",
    "attention_maps",
    "draw_attention",
    "find_sources",
    "is_exported",
    "open_exported",
    "overlay",
    "read_frames",
    "write_labels",
]
