"""Generation of token ids on devices: sampling and beam search. `eval.generation` has text, prompts and stop strings."""
