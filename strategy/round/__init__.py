"""The parts of a round that all methods share: who takes part, what travels, what is checked, what it cost."""
