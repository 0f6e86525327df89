"""Weights of models: loading them, starting a run from them, importing and exporting them."""
