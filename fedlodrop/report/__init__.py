"""The report of one run, or of several side by side: one HTML file that needs nothing else."""
