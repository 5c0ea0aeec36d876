"""strip_conv in Triton."""
