"""Array functions without parameters, used by the layers and by the training step.

Every workaround for XLA's CPU compiler is in `cpu`: custom gradients of products, row sums and maxima, barriers, selects.
"""
