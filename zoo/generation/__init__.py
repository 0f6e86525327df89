"""Generation of token ids on devices: sampling and beam search. Text, prompts and stop strings are `eval.generation`'s."""
