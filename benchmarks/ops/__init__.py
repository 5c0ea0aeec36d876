"""Microbenchmarks of single ops: `attnops bench OP` (bench_op.py under pytest-benchmark)."""
