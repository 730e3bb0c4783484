"""Sharper OFDMA bound: a price per subcarrier and whole ownership sets (columns, their listing, a master program)."""
