"""What is timed of every op: inputs, contenders, and the least it has to move and compute."""

from .anchors import ANCHOR_ATTENTION, PYRAMID_POOL
from .gald import GROUP_ATTENTION, LOCAL_ATTENTION, UPSAMPLE_GATE
from .score_maps import MERGE_SCALES, UPSAMPLE_ARGMAX, UPSAMPLE_CROSS_ENTROPY
from .segnext import DEPTHWISE_GELU, FEED_FORWARD, NMF, STRIP_CONV

DEFINITIONS = {
    "pyramid_pool": PYRAMID_POOL,
    "anchor_attention": ANCHOR_ATTENTION,
    "local_attention": LOCAL_ATTENTION,
    "upsample_gate": UPSAMPLE_GATE,
    "group_attention": GROUP_ATTENTION,
    "strip_conv": STRIP_CONV,
    "depthwise_gelu": DEPTHWISE_GELU,
    "feed_forward": FEED_FORWARD,
    "nmf": NMF,
    "merge_scales": MERGE_SCALES,
    "upsample_cross_entropy": UPSAMPLE_CROSS_ENTROPY,
    "upsample_argmax": UPSAMPLE_ARGMAX,
}
