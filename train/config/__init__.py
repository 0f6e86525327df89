"""Configuration of runs as frozen dataclasses that refuse invalid values. Nothing here imports JAX."""
