"""Standard suites of tasks: which files they need, and the means that their authors define."""
