"""What everybody needs. It imports nothing else of cynosure."""
