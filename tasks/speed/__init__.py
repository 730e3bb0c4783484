"""Optional: training gets faster, results move by rounding at most; entered through `tasks.models.placement` alone."""
