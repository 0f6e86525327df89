"""The parts of a training step: state, optimizer, losses and the device mesh."""
