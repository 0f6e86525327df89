"""Rows of dialogues, preferences, prompts and sampled responses, for learning from feedback."""
