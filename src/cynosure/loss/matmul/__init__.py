"""Providers of matmuls: torch, or on a CPU an alternative that a trial shows to be faster.

`rivals.py` calls the alternatives (`openblas.py`, and the C++ of `native/`), `trials.py` measures them once per
machine, `choice.py` chooses one, and `weight_sum.py` adds up dW in half precision.
"""
