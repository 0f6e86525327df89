"""`zoo bench feedback`: an iteration of learning by sampling, in parts, beside TRL on torch."""
