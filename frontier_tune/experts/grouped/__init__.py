"""The expert layer with adapters on a GPU: grouped products over rows sorted by expert, forward and backward.

``kernels`` are the Triton programs; ``experts`` launches them as one autograd function, and compares them with the formula.
"""
