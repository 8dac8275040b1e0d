"""Helpers that every room uses. It imports no other room of cynosure."""
