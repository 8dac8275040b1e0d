"""Scoring a real text with a real model."""
