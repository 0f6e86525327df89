"""Building blocks of the models: layers, the loop over layers, the key-value cache, task heads."""
