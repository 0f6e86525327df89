"""The ways to make a vector for a text from the hidden states of its tokens. Nothing here imports JAX."""

from typing import Literal

Pool = Literal["mean", "cls", "last", "max", "weighted_mean", "mean_sqrt"]
"""mean of all tokens, special tokens included; cls: the hidden state of that token, without pooler; last: that of the last token;
max: the largest value of each dimension; weighted_mean: the mean with the weights 1, 2, ... in the order of the tokens
(Muennighoff 2022, "SGPT"); mean_sqrt: the sum divided by the square root of the number of tokens."""
DenseActivation = Literal["identity", "tanh", "relu", "gelu", "silu", "sigmoid"]
"""Activation of a dense layer on a pooled vector; gelu is the form with erf."""
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
"""How published vectors are compared, as sentence-transformers names it; the last two are negative distances."""

QUERY_NAMES, DOCUMENT_NAMES = ("query",), ("document", "passage", "corpus")
"""Names of the prompts of both sides of a search in the order in which they are looked for, as by sentence-transformers 6.2; the
first is written."""
