r"""Which columns of lora_A and rows of lora_B a device keeps, drawn from a seed that both ends share.

FedLoDrop trains ``A diag(m_A)`` and ``diag(m_B) B``: columns of A and rows of B are dropped, the rank stays [Xie2026].
The mask itself never travels: the server sends a seed of 8 bytes and both ends draw the same indices from it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapter.state import AdapterSpec

IndexArray = npt.NDArray[np.int64]
Survivors = tuple[IndexArray | slice, IndexArray | slice]

Factors = tuple[str, ...]
FACTORS: Factors = ("A", "B")
_MASK_STREAM = 0x6D61736B  # the channel or the batches of the same round are drawn from other streams


@dataclass(frozen=True)
class ModuleMask:
    """Survivors of one module: ascending column indices of lora_A and row indices of lora_B."""

    columns: IndexArray
    rows: IndexArray


@dataclass(frozen=True)
class AdapterMask:
    """Survivors of every module, in the order of the adapter layout."""

    modules: tuple[ModuleMask, ...]

    @classmethod
    def full(cls, spec: AdapterSpec) -> "AdapterMask":
        """Return the mask that drops nothing."""
        return cls(tuple(ModuleMask(np.arange(m.in_features), np.arange(m.out_features)) for m in spec.modules))

    def survivors(self, spec: AdapterSpec, factors: Factors = FACTORS) -> Iterator[tuple[str, str, Survivors]]:
        """Yield part, module and NumPy index of what is kept of every lora_A and lora_B."""
        for module, kept in zip(spec.modules, self.modules, strict=True):
            if "A" in factors:
                yield "lora_A", module.name, (slice(None), kept.columns)
            if "B" in factors:
                yield "lora_B", module.name, (kept.rows, slice(None))


def kept_count(size: int, dropout_rate: float) -> int:
    r"""Number of survivors, :math:`\max(1, \lfloor (1-\gamma) n + 10^{-9} \rfloor)`.

    Rounding down makes the shipped payload never exceed the planned one; the 1e-9 forgives the last bit of 1 - gamma.
    """
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate must lie in [0, 1), found {dropout_rate!r}")
    return max(1, math.floor((1 - dropout_rate) * size + 1e-9))


def mask_seed(seed: int, server_round: int, device: int) -> int:
    """Return the 63-bit seed of one device's mask in one round; independent of all other draws of the run."""
    words = np.random.SeedSequence([_MASK_STREAM, seed, server_round, device]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def sample_mask(
    spec: AdapterSpec, seed: int, dropout_rate: float, kind: str = "fixed", factors: Factors = FACTORS
) -> AdapterMask:
    """Draw the survivors of every module, the same for the same arguments, everywhere.

    ``dropout_rate`` is gamma, in [0, 1). ``fixed`` keeps exactly `kept_count` entries per matrix, so that the payload
    is known beforehand; ``bernoulli`` keeps each entry with probability 1 - gamma ([Xie2026]'s form), at least one.
    Factors not in ``factors`` keep every row or column.
    """
    if kind not in ("fixed", "bernoulli"):
        raise ValueError(f"mask kind must be one of fixed, bernoulli, found {kind!r}")
    rng = np.random.default_rng(seed)
    rate_A, rate_B = (dropout_rate if factor in factors else 0.0 for factor in FACTORS)
    kept = (
        ModuleMask(_survivors(m.in_features, rate_A, kind, rng), _survivors(m.out_features, rate_B, kind, rng))
        for m in spec.modules
    )
    return AdapterMask(tuple(kept))


def _survivors(size: int, dropout_rate: float, kind: str, rng: np.random.Generator) -> IndexArray:
    keep = kept_count(size, dropout_rate)
    if dropout_rate == 0:
        return np.arange(size)
    draws = rng.random(size)
    if kind == "fixed":
        # The `keep` smallest draws: only the generator's uniform stream matters, not how a library shuffles.
        return np.flatnonzero(draws <= np.partition(draws, keep - 1)[keep - 1])[:keep]
    kept = np.flatnonzero(draws >= dropout_rate).astype(np.int64)
    return kept if kept.size else np.array([np.argmax(draws)], dtype=np.int64)
