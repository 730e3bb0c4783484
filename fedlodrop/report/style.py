"""Colours and marks of the report's charts; the page's own appearance is style.css."""

from optimizer.palette import PALETTE, PURPLE, VERMILION

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
GLYPHS = "●■◆▲✚✖★"  # the same shapes as characters, for the legend of runs
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SAT_OUT, FAILED, LIMIT = VERMILION, PURPLE, VERMILION

__all__ = ["DASHES", "FAILED", "GLYPHS", "LIMIT", "PALETTE", "SAT_OUT", "SYMBOLS"]
