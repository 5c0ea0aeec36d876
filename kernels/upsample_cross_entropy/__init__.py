"""upsample_cross_entropy in Triton."""
