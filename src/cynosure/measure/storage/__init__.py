"""Runs on disk: the table with a row a token, its shards, and the manifest."""
