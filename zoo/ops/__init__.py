"""Array functions without parameters that the layers and the training step share."""
