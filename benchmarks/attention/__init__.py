"""The attention benchmark: what is measured, its reference errors, tables and page."""
