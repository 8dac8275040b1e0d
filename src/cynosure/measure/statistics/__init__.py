"""What is computed from scored tokens: sums, intervals, calibration, breakdowns."""
