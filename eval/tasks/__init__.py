"""Tasks on local files, and the scores of a run's held-out rows: data, a function that scores a model on it, and metrics."""
