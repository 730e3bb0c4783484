"""What every method is given beside the problem, and what it decides for the devices that take part.

A method is a function (problem, arguments) -> `Solution`. How long it may take it asks `optimizer.timing`; its name,
the time it took and the check of its answer are the allocator's business.
"""

from dataclasses import dataclass, field

import numpy as np

from optimizer.certificate import Certificate
from optimizer.objective import GeneralizationBound, SeparableObjective
from optimizer.problem import FloatArray, IntArray, Solution, SolverStatus
from optimizer.timing import time_is_up


@dataclass(frozen=True)
class Limits:
    """Effort of the OFDMA tree search.

    Nodes bounded (None: any number); linear programs per node; sets listed per device; sets kept per device and
    pricing; whether dropout rates are split (True: wherever possible, None: where that lifts the bound more).
    """

    max_nodes: int | None = None
    rounds: int = 40
    list_length: int = 400_000
    keep: int = 100
    split_rates: bool | None = None


@dataclass(frozen=True)
class Arguments:
    """What a method is told; each uses the part that concerns it.

    Parameters
    ----------
    objective : SeparableObjective
        What to minimise.
    gap : float
        Relative gap at which a certified method may stop and up to which an answer is called optimal.
    dropout_rate : float
        Rate of the method ``fixed``.
    rng : Generator, optional
        All the randomness; seed 0 when left out.
    warm_start : Solution, optional
        An earlier answer to start from.
    limits : Limits
        Effort of the OFDMA tree search.
    """

    objective: SeparableObjective = field(default_factory=GeneralizationBound)
    gap: float = 1e-4
    dropout_rate: float = 0.5
    rng: np.random.Generator | None = None
    warm_start: Solution | None = None
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
    """What a method decides for the K devices that take part; power and all figures follow from it.

    Parameters
    ----------
    lower_bound : float
        Below every allocation of these devices.
    certificate : mapping, optional
        Proves it.
    dropout_rate : ndarray, optional
        (K,); under OFDMA the best ones for ``owner`` when left out.
    bandwidth_hz : ndarray, optional
        (K,) [Hz] where a rule grants it; otherwise the least that serves, and what is left saves energy.
    owner : ndarray, optional
        (M,) device or -1, OFDMA.
    status : SolverStatus, optional
        How it ended; judged by the gap when left out.
    nodes, iterations : int
        Work done.
    notes : tuple of str
        What a reader must know.
    """

    lower_bound: float
    certificate: Certificate | None = None
    dropout_rate: FloatArray | None = None
    bandwidth_hz: FloatArray | None = None
    owner: IntArray | None = None
    status: SolverStatus | None = None
    nodes: int = 0
    iterations: int = 0
    notes: tuple[str, ...] = ()
