"""Array functions without parameters, used by the layers and by the training step.

Functions whose plain definition XLA compiles to slow code for a CPU have a second form: see `cpu_forms`.
"""
