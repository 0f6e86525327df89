"""`zoo bench embed`: vectors of texts of mixed lengths, beside sentence-transformers on torch."""
