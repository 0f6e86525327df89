"""Generation of token ids on devices: the decode loop, sampling and beam search, without text.

Prompts as text, batching of different lengths and stop strings are in `eval.generation`.
"""
