"""The benchmark of training and decoding steps, with peers and a breakdown of time."""
