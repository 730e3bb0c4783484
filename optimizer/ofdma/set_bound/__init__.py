"""Sharper OFDMA bound: a price per subcarrier and whole ownership sets (pricing, and a master program over them)."""
