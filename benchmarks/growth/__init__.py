"""The benchmark of how time and memory grow with length."""
