"""Predictions of fine-tuned models for examples without labels."""
