"""Sizes of tiles of kernels: a cost model judged by published times, and their measurement on a device."""
