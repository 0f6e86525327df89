"""Names of the ways to compute the likelihood of a text, for the command line; without JAX."""

from typing import Literal

LikelihoodMethod = Literal["auto", "target", "sentinel", "pseudo", "within_word", "left_to_right", "permutations"]
"""See `eval.inference.text_likelihoods`."""
