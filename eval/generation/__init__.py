"""Generation of text: prompts, batching, stop strings and settings. Token ids are drawn in `zoo.generation`."""
