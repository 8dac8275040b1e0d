"""Benchmarks of cynosure against other implementations: separate processes, checked results, interleaved runs."""
