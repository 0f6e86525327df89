"""Generation of text: prompts, batching, stop strings and settings.

Tokens are sampled and the cache is updated in `zoo.generation.decode_loop`.
"""
