"""The training step: state, optimizer, losses, the device mesh and the sharded step itself."""
