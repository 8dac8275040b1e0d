"""Runs on disk: the table with one row per token, its shards, and the manifest."""
