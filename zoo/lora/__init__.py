"""Low-rank adapters (Hu et al. 2021) on published matrices: `adapters` adds them to parameters, `peft_files` exchanges them.

A family's module names the matrices that have adapters by default, `LORA`; everything else follows from its published names.
"""
