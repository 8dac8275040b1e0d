"""Present scores: metrics with their intervals, as text, tables and DataFrames."""
