"""A solver's arguments beside the problem, and its decision for the devices that take part.

Method means solver here, (problem, arguments) -> `Solution`; federated ones: `strategy.methods`. How long it may take
it asks `optimizer.timing`; its name, the time it took and the check of its answer are the allocator's business.
"""

from dataclasses import dataclass, field

import numpy as np

from optimizer.certificate import Certificate
from optimizer.objective import GeneralizationBound, SeparableObjective
from optimizer.problem import FloatArray, IntArray, Solution, SolverStatus
from optimizer.timing import time_is_up


@dataclass(frozen=True)
class Limits:
    """Effort of the OFDMA tree search."""

    max_nodes: int | None = None  # nodes bounded, None: any number
    rounds: int = 40  # linear programs per node
    list_length: int = 400_000  # sets listed per device
    keep: int = 100  # sets kept per device and pricing
    split_rates: bool | None = None  # dropout rates are split wherever possible; None: where that lifts the bound more


@dataclass(frozen=True)
class Arguments:
    """What a method is told; each uses the part that concerns it."""

    objective: SeparableObjective = field(default_factory=GeneralizationBound)  # what to minimise
    gap: float = 1e-4  # relative: a certified method may stop there, and an answer up to it is called optimal
    dropout_rate: float = 0.5  # of the method ``fixed``
    rng: np.random.Generator | None = None  # all the randomness; seed 0 when left out
    warm_start: Solution | None = None  # an earlier answer to start from
    limits: Limits = Limits()

    @property
    def generator(self) -> np.random.Generator:
        """The randomness."""
        return self.rng or np.random.default_rng(0)

    def status(self, value: float, lower_bound: float) -> SolverStatus:
        """How a solve ended: within the gap (1e-12 at least: below that rounding decides), out of time, or neither."""
        if value - lower_bound <= max(self.gap, 1e-12) * max(abs(value), 1e-12):
            return SolverStatus.OPTIMAL
        return SolverStatus.TIME_LIMIT if time_is_up() else SolverStatus.FEASIBLE


DEFAULTS = Arguments()


@dataclass(frozen=True)
class Decision:
    """What a method decides for the K devices that take part; power and all figures follow from it."""

    lower_bound: float  # below every allocation of these devices
    certificate: Certificate | None = None  # proves it
    dropout_rate: FloatArray | None = None  # (K,); under OFDMA the best ones for ``owner`` when left out
    bandwidth_hz: FloatArray | None = None  # (K,) of a rule; else the least that serves, and the rest saves energy
    owner: IntArray | None = None  # (M,) device or -1, OFDMA
    status: SolverStatus | None = None  # how it ended; judged by the gap when left out
    nodes: int = 0
    iterations: int = 0
    notes: tuple[str, ...] = ()  # what a reader must know
