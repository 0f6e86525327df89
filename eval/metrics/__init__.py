"""Metrics as functions of predictions and truths, with their standard errors: of labels, spans, tags and texts."""
