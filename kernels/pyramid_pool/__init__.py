"""pyramid_pool in Triton."""
