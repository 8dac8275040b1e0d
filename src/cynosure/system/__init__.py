"""Shared helpers that need only the standard library; `upstream.py` also needs torch."""
