"""The sampled backward: an unbiased estimate of the gradients from a part of the vocabulary's columns.

`options.py` has what a caller sets, `choice.py` chooses the columns, `sampler.py` computes with them, `scales.py`
learns how large the gradients are, `row_sums.py` adds up dW, and `record.py` tells listeners what was kept.
"""
