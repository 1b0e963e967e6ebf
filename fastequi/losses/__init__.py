"""Loss modules, one per file, named like their function.

How to add one, with or without a kernel: kernels/README.md.
"""
