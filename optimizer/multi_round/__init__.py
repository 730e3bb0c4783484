"""What trades the deadline or spans several rounds: shortest deadline, weighted trade-off, batteries, choices."""
