"""Scores of a model on data, by objective; `eval.metrics` has the metrics that they are made of."""
