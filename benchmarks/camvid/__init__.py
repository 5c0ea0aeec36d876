"""CamVid for real: every family trained with fast and with reference heads, and what it costs."""
