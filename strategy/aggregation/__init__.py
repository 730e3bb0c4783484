"""How a round's answers become one adapter: one file each, an `Average` of `strategy.aggregation.interface`.

A new average is registered in `strategy.base`: `LoraStrategy.new_average` chooses by the settings, and a method in
`strategy.methods` that averages in its own way overrides `new_average` or `mean`.
"""
