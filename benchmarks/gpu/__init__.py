"""`make gpu`: the tests and all benchmarks on a CUDA device, into one report."""
