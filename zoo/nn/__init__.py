"""Building blocks of the models: layers, the scan over layers, the key-value cache, task heads."""
