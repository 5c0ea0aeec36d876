"""anchor_attention in Triton."""
