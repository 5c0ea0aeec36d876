"""upsample_argmax in Triton."""
