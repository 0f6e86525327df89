"""Searches for the options of a training run by Optuna."""
