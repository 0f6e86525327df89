"""Readers of files: text, tables, labelled and unlabelled examples, and the embedded corpus. They yield records, not arrays."""
