"""feed_forward in Triton."""
