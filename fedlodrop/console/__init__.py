"""What a person sees of a run in a terminal: progress, plans before a run, explanations after it, and the state of this machine."""
