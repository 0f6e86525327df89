"""Attention: the request, the table of implementations, masks, biases and the kernels behind one function.

`attention.attention` chooses the implementation; nothing else in the zoo calls a kernel.
"""
