"""Compare two runs, or two models, on the same texts."""
