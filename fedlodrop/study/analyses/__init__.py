"""Studies that are mathematics, not runs: each computes a table, a row per setting and seed, and draws one figure."""
