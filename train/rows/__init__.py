"""Rows of tokens: how documents, pairs and examples are cut, packed, masked, mixed and batched, on the host."""
