"""Inputs of a run by kind of data, from files to the rows for training and scoring."""
