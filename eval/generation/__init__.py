"""Generation of text: prompts, batching, stop strings and settings; token ids are sampled in `zoo.generation`."""
