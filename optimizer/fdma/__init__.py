"""``network.access=fdma``: continuous bandwidth; one curve per device, one price for all of them.

Solvers: `exact`, `branch_and_bound`, `psca` and the rules of `schemes`; `optimizer.allocator` picks one by the access
and ``allocator.name``. Who sits out where not all can be served: `admission`; from a decision to powers: `completion`.
"""
