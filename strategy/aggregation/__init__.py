"""How a round's answers become one adapter: one file per average (``strategy.aggregation``, ``new_average``)."""
