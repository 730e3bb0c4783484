"""The model that a run ended with: loaded exactly, asked for predictions, exported to other tools."""
