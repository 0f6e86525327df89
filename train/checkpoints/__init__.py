"""Checkpoints: saving, restoring and pruning them, the manifest with its digests, arrays through Orbax, and the best one."""
