"""The frozen base of every task and the LoRA modules on it."""
