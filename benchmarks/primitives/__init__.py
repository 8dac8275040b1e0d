"""The primitives of post-training: log-probabilities with the entropy, and the divergence of two heads."""
