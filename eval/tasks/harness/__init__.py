"""Tasks of lm-evaluation-harness: its YAML files, the templates in them, and the adapter through which it asks a model."""
