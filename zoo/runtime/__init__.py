"""Process set-up: the start of JAX, several processes on one machine, the compilation cache, standard streams."""
