"""Run texts through a model: windows, batches, and a row for each token."""
