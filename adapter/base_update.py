r"""Updates of the frozen base as factors: what a method adds to W0 beside the adapter, on the wire and in memory.

An update adds :math:`L_t R_t` to a weight, with :math:`L_t` (m, R_t) and :math:`R_t` (R_t, n). A device that missed
some gets all of them, or, for a module where that would be no smaller, the whole change since the start, m n numbers.
Both ends add with `apply_update`, in the same order, so that a device that followed every round and one that got the
sum hold equal bits. The numbers are float32 whatever ``wire.dtype`` says: rounding errors would stay in the base for
good.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from adapter.quantize import PayloadError
from adapter.state import AdapterSpec, FloatArray, ModuleShape

Deltas = dict[str, FloatArray]  # module -> change of its weight, (out_features, in_features) float32
Update = Mapping[str, tuple[FloatArray, FloatArray]]  # module -> left (m, R), right (R, n), float32

BASE_HEADER_BYTES = 96  # reserved for the name, type and length of the second array in a message


def apply_update(base: Mapping[str, FloatArray], update: Update) -> Deltas:
    """Return the change of every weight so far plus the products of an update; products in float64, sums in float32."""
    new = dict(base)
    for name, (left, right) in update.items():
        step = (left.astype(np.float64) @ right.astype(np.float64)).astype(np.float32)  # (m, R) @ (R, n) -> (m, n)
        new[name] = new[name] + step if name in new else step
    return new


def is_dense(module: ModuleShape, ranks: Sequence[int]) -> bool:
    """Whether a module's updates of these ranks travel as one dense matrix: no ranks given, or factors no smaller."""
    m, n = module.out_features, module.in_features
    return not ranks or sum(ranks) * (m + n) >= m * n


def base_entries(spec: AdapterSpec, ranks: Sequence[int]) -> int:
    """Return the numbers that updates of these ranks take on the wire, min(m n, sum R_t (m + n)) per module."""
    sizes = ((module.out_features, module.in_features, is_dense(module, ranks)) for module in spec.modules)
    return sum(m * n if dense else sum(ranks) * (m + n) for m, n, dense in sizes)


def pack_base(
    spec: AdapterSpec, base: Mapping[str, FloatArray], updates: Sequence[Update], ranks: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Lay updates of some ranks, oldest first, into one flat float32 buffer.

    ``base`` is the whole change after them, for modules that travel densely (all where ``ranks`` is empty).
    """
    pieces = []
    for module in spec.modules:
        if is_dense(module, ranks):
            pieces.append(base.get(module.name, np.zeros((module.out_features, module.in_features))).reshape(-1))
        else:
            pieces += [factor.reshape(-1) for update in updates for factor in update[module.name]]
    return np.concatenate(pieces).astype("<f4")


def unpack_base(
    spec: AdapterSpec, buffer: bytes, base: Mapping[str, FloatArray], ranks: Sequence[int], skip: int = 0
) -> Deltas:
    """Return the change that a device holds plus the updates in a buffer; it has added the first ``skip`` already.

    `PayloadError` if the length is not what the layout asks for, or a value is not finite.
    """
    expected = 4 * base_entries(spec, ranks)
    if len(buffer) != expected:
        raise PayloadError(f"base update: expected {expected} bytes, found {len(buffer)}")
    flat: FloatArray = np.frombuffer(buffer, dtype="<f4").astype(np.float32)
    if not np.isfinite(flat).all():
        raise PayloadError("the base update holds a value that is not finite")
    new, offset = dict(base), 0
    for module in spec.modules:
        m, n = module.out_features, module.in_features
        if is_dense(module, ranks):
            new[module.name] = flat[offset : (offset := offset + m * n)].reshape(m, n)
            continue
        for number, rank in enumerate(ranks):
            left = flat[offset : (offset := offset + m * rank)].reshape(m, rank)
            right = flat[offset : (offset := offset + rank * n)].reshape(rank, n)
            if number >= skip:
                new = apply_update(new, {module.name: (left, right)})
    return new
