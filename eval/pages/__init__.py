"""Pages of self-contained HTML, with charts: what reports, experiments, benchmarks and plans share."""
