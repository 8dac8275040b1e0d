"""The row kernels in Triton: `tiles.py` reads logits, `loss.py` and `stats.py` are the kernels, `launch.py` runs them.

Only `launch.py` is imported from outside, and only once a kernel runs: it needs triton.
"""
