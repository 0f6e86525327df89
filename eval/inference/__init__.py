"""Computation of texts and rows by a model over its mesh: likelihoods, logits, and any function of a batch."""
