"""Fused attention heads for semantic segmentation: one op each, exact gradients, GPU and CPU."""

import importlib
from types import ModuleType

from . import _choice, nn, reference
from ._backends.loading import load_implementations
from ._choice import use_backend
from ._dispatch import BackendError, backends
from ._op import OPS
from ._op.flops import register_flops
from ._version import __version__
from .anchor_attention import anchor_attention
from .depthwise_gelu import depthwise_gelu
from .feed_forward import feed_forward
from .group_attention import group_attention
from .local_attention import local_attention
from .merge_scales import merge_scales
from .nmf import nmf
from .pyramid_pool import pyramid_pool
from .replace import ReplacementReport, predict_labels, replace_modules
from .strip_conv import strip_conv
from .upsample_argmax import upsample_argmax
from .upsample_cross_entropy import upsample_cross_entropy, valid_weight
from .upsample_gate import upsample_gate

register_flops(OPS)
_choice.read_environment()
load_implementations()


def __getattr__(name: str) -> ModuleType:
    """`attnops.models` is imported on its first use: the ops alone do not need it."""
    if name == "models":
        return importlib.import_module(".models", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "BackendError",
    "ReplacementReport",
    "__version__",
    "anchor_attention",
    "backends",
    "depthwise_gelu",
    "feed_forward",
    "group_attention",
    "local_attention",
    "merge_scales",
    "nmf",
    "nn",
    "predict_labels",
    "pyramid_pool",
    "reference",
    "replace_modules",
    "strip_conv",
    "upsample_argmax",
    "upsample_cross_entropy",
    "upsample_gate",
    "use_backend",
    "valid_weight",
]
