"""A model of training steps with a pipeline over the layers, compared with published steps, and with the best step without one.

`pipeline_tables` and `compiled_steps` print the tables of `benchmarks/results/pipelines_2026-12-01.md`.
"""
