"""The attention benchmark: its sweep, error bounds, tables and page."""
