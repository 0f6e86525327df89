"""The process: how JAX starts, several processes on one machine, the compilation cache, the terminal's streams."""
