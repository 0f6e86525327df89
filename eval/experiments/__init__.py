"""Experiments: declared grids of runs over several seeds, and the verdicts that they allow on the claims of a paper."""
