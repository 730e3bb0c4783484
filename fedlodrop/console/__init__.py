"""What a terminal shows of a run: progress, plans before it, explanations after it, and the state of this machine."""
