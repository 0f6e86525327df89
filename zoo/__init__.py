"""Models: configurations, attention, layers, sharding rules and the model files. Imports jax, flax and numpy only."""
