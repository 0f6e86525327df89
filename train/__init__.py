"""Training: from raw text to a checkpoint. Imports `zoo` and nothing to the right of it."""
