"""Examples of every task: loaded, divided among devices, cut into batches."""
