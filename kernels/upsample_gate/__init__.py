"""upsample_gate in Triton."""
