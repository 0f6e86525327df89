"""What all benchmarks share: result files, processes, timing, guarded measurement, comparison of results."""
