"""Self-contained HTML pages of scored runs, comparisons and trainings, made from their folders."""
