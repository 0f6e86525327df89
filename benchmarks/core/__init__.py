"""Shared parts of all benchmarks: result files, processes, timing, trials, tables, pages, comparison of results."""
