"""The app a user would write first: Flower's LoRA template on the same task."""
