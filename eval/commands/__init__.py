"""What `zoo generate`, `embed`, `fill-mask`, `predict` and `eval --task` do, and how they write to the terminal."""
