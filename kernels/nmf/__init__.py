"""nmf in Triton."""
