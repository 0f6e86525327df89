"""The report of a run: one HTML page without external files, its charts and samples."""
