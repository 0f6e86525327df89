"""Scores of a model on data, by objective, and the metrics they are made of."""
