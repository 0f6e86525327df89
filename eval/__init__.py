"""Evaluation: exact scores, and the report of a run. Imports `zoo` and `train`."""
