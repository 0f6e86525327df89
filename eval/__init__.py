"""Evaluation: exact scores and the report a run leaves behind. Imports `zoo` and `train`."""
