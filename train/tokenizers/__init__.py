"""Tokenizers: training, encoding, special tokens, and the files in which they are exchanged."""
