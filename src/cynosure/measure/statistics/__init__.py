"""Compute statistics from scored tokens: sums, intervals, calibration, breakdowns."""
