"""What everybody needs, from the standard library alone."""
