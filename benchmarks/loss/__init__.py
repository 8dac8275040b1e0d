"""The loss of a head, forward and backward or forward alone."""
