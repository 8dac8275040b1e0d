"""Store runs on disk: a table with one row per token, in shards, and a manifest."""
