"""Checkpoints: the manifest with its digests, arrays through Orbax, restoring, and the best checkpoint."""
