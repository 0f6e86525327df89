"""Comparison of finished runs over seeds."""
