"""Compiling every kernel ahead of time, without a GPU: `python -m attnops.kernels.aot`."""
