"""merge_scales in Triton."""
