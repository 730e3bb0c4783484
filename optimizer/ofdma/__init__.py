"""Subcarriers with one owner each: a mixed-integer problem."""
