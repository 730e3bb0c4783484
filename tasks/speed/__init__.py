"""What makes training faster and changes results by rounding at most: states kept, no padding, other products."""
