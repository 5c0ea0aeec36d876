"""local_attention in Triton."""
