"""Array functions without parameters, used by the layers and by the training step."""
