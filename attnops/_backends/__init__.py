"""The backends behind the ops: the reference functions, and the compiled libraries (CPU, CUDA)."""
