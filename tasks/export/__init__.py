"""Trained adapters and models as files that other tools load."""
