"""Every op in plain PyTorch: the definition, the oracle of the tests, and the fallback.

The functions take the arguments of the public ones, are differentiable any number of times, and
compute in the dtype they are given. As a backend (`attnops._backends`) they get half
precision in float32.
"""

from .anchor_attention import anchor_attention
from .depthwise_gelu import depthwise_gelu
from .feed_forward import feed_forward
from .group_attention import group_attention
from .local_attention import local_attention
from .merge_scales import merge_scales
from .nmf import nmf
from .pyramid_pool import pyramid_pool
from .strip_conv import strip_conv
from .upsample_argmax import upsample_argmax
from .upsample_cross_entropy import upsample_cross_entropy
from .upsample_gate import upsample_gate

__all__ = [
    "anchor_attention",
    "depthwise_gelu",
    "feed_forward",
    "group_attention",
    "local_attention",
    "merge_scales",
    "nmf",
    "pyramid_pool",
    "strip_conv",
    "upsample_argmax",
    "upsample_cross_entropy",
    "upsample_gate",
]
