"""Data, models, scores and what makes them fast. Imports nothing: settings and partitions are read without torch."""
