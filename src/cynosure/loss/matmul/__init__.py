"""Providers of matmuls: torch, or on a CPU a rival that a trial shows to be faster.

`rivals.py` calls them (`openblas.py`; the C++ of `native/`), `trials.py` measures them once on a machine, `choice.py`
chooses, `weight_sum.py` adds up dW in half precision.
"""
