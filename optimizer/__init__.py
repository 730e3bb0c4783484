"""The resource optimizer: dropout rates, bandwidth or subcarriers, and power that minimise the generalization bound.

The optimizer that trains is always called ``torch_optimizer``; this package decides resources only.
"""
