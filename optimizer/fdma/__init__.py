"""``network.access=fdma``: continuous bandwidth; one curve per device, one price for all of them."""
