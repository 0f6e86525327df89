"""Counts of FLOPs and bytes: of a compiled program, of attention kernels, and of the program that was traced."""
