"""Colours of every figure and chart: those of Okabe and Ito (Color Universal Design, 2008)."""

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, GREY, BLACK = "#E69F00", "#56B4E9", "#8A8A8A", "#000000"
# In the order in which they stand out from white and from black; Okabe and Ito's yellow and black do not.
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY)


def pair(position: int) -> tuple[int, int]:
    """Colour and symbol of the ``position``-th curve, as positions in `PALETTE` and among symbols; 49 differ."""
    count = len(PALETTE)
    return position % count, (position + position // count) % count
