"""The charts of a report, each with its values as a table."""
