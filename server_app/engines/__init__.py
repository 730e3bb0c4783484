"""Two ways to run the same two apps: on Flower with Ray workers, or in one process."""
