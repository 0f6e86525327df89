"""The commands `zoo generate`, `embed`, `fill-mask`, `predict` and `eval --task`, and their output to the terminal."""
