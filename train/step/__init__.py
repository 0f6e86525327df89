"""The training step of a run, and the functions that launch it."""
