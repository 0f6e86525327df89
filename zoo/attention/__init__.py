"""Attention: the request, the table of implementations, masks, biases and the kernels behind one function.

`attention.attention` chooses the implementation; nothing else in the zoo calls a kernel. `masks` and `biases` are small
specifications (`spec`), which kernels cut to `tiles` or make dense. Each file of `kernels` is a function with one signature.
"""
