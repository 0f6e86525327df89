"""The parts of the training loop of `train.trainer`, in the order in which it calls them."""
