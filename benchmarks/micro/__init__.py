"""Programs that measure one question each: what packing gains, what a token, a beam or a stream costs, and bounds of kernels."""
