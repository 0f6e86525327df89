"""Rows of tokens: cutting, packing, masking, mixing and batching of documents, pairs and examples, on the host."""
