"""The text of a report, token by token."""
