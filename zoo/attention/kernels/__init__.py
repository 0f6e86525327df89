"""Attention implementations that need more than a few lines, one file each. Each is a function of local arrays."""
