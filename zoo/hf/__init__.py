"""Published models in the layout of Hugging Face: config.json, parameter names, weights, and the hub's cache.

`zoo.published_weights` uses these for import and export; its `plan_import` refuses tensors that are missing, of another shape,
NaN or infinite.
"""
