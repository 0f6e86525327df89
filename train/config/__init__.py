"""Configurations of runs as frozen dataclasses that refuse meaningless values. Nothing here imports JAX."""
