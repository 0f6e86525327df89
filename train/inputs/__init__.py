"""Inputs of a run: from its files to the rows it trains on and is scored on, by kind of data."""
