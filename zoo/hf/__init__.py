"""Published models in the layout of Hugging Face: config.json, parameter names, safetensors, and the hub's cache."""
