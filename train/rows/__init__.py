"""Rows of tokens: cutting, packing, mixing and batching of documents, pairs and examples, on the host."""
