"""depthwise_gelu in Triton."""
