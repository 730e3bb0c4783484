"""Error feedback: what rounding kept back in one upload is added to the next [Seide2014] [Karimireddy2019].

Rounding at random has no bias, so nothing is lost on average; with few devices and 4 bits its variance still costs
rounds. The residual of every entry waits until that entry is sent again; an entry that is dropped keeps it.

References
----------
[Seide2014] Seide et al., 1-Bit Stochastic Gradient Descent and Its Application to Data-Parallel Distributed Training of
    Speech DNNs, Interspeech 2014.
[Karimireddy2019] Karimireddy et al., Error Feedback Fixes SignSGD and other Gradient Compression Schemes, ICML 2019.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from adapter import AdapterMask, AdapterSpec, AdapterState, pack, unpack
from adapter.state import FloatArray
from client_app.memory import DeviceMemory

_PART = "residual"


def pack_with_feedback(
    spec: AdapterSpec,
    changes: AdapterState,
    mask: AdapterMask,
    wire_dtype: str,
    factors: tuple[str, ...],
    rng: np.random.Generator,
    memory: DeviceMemory,
    server_round: int,
) -> npt.NDArray[np.generic]:
    """Add the residual to the changes, pack them, and remember what the packing kept back.

    The memory holds the residual as whole tensors; one of another rank does not fit any more and is dropped.
    """
    held = memory.get(_PART)
    views = _views(spec, mask, factors)
    for key, (shape, index, part, name) in views.items():
        if key not in held or held[key].shape != shape:
            held[key] = np.zeros(shape, dtype=np.float32)
        values: dict[str, FloatArray] = getattr(changes, part)
        values[name] = (values[name] + held[key][index]).astype(np.float32)
    flat = pack(spec, changes, mask, wire_dtype, factors, rng)
    sent = unpack(spec, flat.tobytes(), mask, wire_dtype, factors)
    for key, (_, index, part, name) in views.items():
        held[key][index] = getattr(changes, part)[name] - getattr(sent, part)[name]
    memory.put(_PART, server_round, held)
    return flat


_View = tuple[tuple[int, ...], tuple[slice | npt.NDArray[np.int64], ...], str, str]


def _views(spec: AdapterSpec, mask: AdapterMask, factors: tuple[str, ...]) -> dict[str, _View]:
    """Return per tensor its whole shape, the survivors in it, and where its changes are."""
    views: dict[str, _View] = {}
    for module, kept in zip(spec.modules, mask.modules, strict=True):
        if "A" in factors:
            index = (slice(None), kept.columns)
            views[f"A/{module.name}"] = (module.r, module.in_features), index, "lora_A", module.name
        if "B" in factors:
            views[f"B/{module.name}"] = (module.out_features, module.r), (kept.rows,), "lora_B", module.name
    return views | {f"head/{name}": (shape, (slice(None),), "head", name) for name, shape in spec.head}
