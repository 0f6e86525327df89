"""Batches that depend on the parameters: responses of the model in training, their rewards and advantages.

Nothing here imports `train.inputs` or `train.objectives`, which use it.
"""
