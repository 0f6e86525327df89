"""Experiments: declared grids of training runs at an equal budget, run with several seeds and judged against a paper's table.

`declaration` says what an experiment is, `catalogue` holds one module for each, `engine` runs what is missing, and the page is a
function of experiment.json alone.
"""
