"""Optional: what makes training faster and changes results by rounding at most.

Entered through `tasks.models.placement` alone; without this folder the product is as correct, and slower.
"""
