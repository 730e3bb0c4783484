"""One script for a machine with a GPU: `python -m tests.gpu`."""
