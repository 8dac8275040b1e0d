"""Faults that somebody could write into the package, and whether the tests see each: `python -m tests.faults`."""
