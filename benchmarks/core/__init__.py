"""Shared parts of all benchmarks: result files, processes, timing, guarded measurement, comparison of results."""
