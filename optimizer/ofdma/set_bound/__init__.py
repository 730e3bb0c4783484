"""Sharper OFDMA bound: a price per subcarrier and whole ownership sets (columns, and a master program over them)."""
