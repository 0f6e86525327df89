"""Benchmarks. Imports `zoo`, `train` and `eval`. Results live in `results/<what>_<hardware>_<date>`."""
