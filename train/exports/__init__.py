"""Models in the forms that other programs read: StableHLO, ONNX, GGUF."""
