"""Studies that are mathematics, not runs: ``study`` of each computes a table, and draws one figure."""
