"""Divergences between the distributions of two heads, without either's N x V logits. Read `reference.py` first."""
