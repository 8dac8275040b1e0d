"""Helpers that every room uses. They import no other room of cynosure."""
