"""Choices of the tokens of a row that are predicted, and of what the model sees of the others: masks, spans, permutations."""
