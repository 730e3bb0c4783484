"""``network.access=ofdma``: subcarriers with one owner each, a mixed-integer problem."""
