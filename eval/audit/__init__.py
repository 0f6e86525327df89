"""The audit of a run: its steps are replayed, its digests and scores checked, and the results are a certificate."""
