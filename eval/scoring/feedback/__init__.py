"""Scores of models that learn from feedback: preferences, labelled answers and policies."""
