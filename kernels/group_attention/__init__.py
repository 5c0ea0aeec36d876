"""group_attention in Triton."""
