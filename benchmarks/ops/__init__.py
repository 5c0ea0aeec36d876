"""Microbenchmarks for pytest-benchmark: `attnops bench OP`, or pytest with one of these files."""
