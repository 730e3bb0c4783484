"""What makes training faster without changing what it computes."""
