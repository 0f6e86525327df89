"""Scores of held-out rows by objective, in training, by `zoo eval RUN`, and of the files of a task that has such rows."""
