"""The sharper OFDMA bound: a price per subcarrier and whole ownership sets (columns, their listing, the master program)."""
