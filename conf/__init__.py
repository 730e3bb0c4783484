"""Configuration: the Hydra tree, its types, and the one function that composes it for both apps."""
