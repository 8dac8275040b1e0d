"""Training with a sampled backward, compared with exact training: the same model, texts and order, seed by seed."""
