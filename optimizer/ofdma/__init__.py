"""``network.access=ofdma``: subcarriers with one owner each, a mixed-integer problem.

Solvers: `branch_and_bound` (``exact`` too), `psca` and the rules of `schemes`; `optimizer.allocator` picks one by the
access and ``allocator.name``. Who sits out: `admission`; from owners to powers: `completion`; bounds: `dual_bound`.
"""
