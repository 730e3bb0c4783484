"""Error feedback: what rounding kept back in one upload is added to the next [Seide2014] [Karimireddy2019].

Rounding at random has no bias, so nothing is lost on average; with few devices and 4 bits its variance still costs
rounds. The residual of every entry waits until that entry is sent again; an entry that is dropped keeps it.

References
----------
[Seide2014] Seide et al., 1-Bit Stochastic Gradient Descent and Its Application to Data-Parallel Distributed Training of
    Speech DNNs, Interspeech 2014.
[Karimireddy2019] Karimireddy et al., Error Feedback Fixes SignSGD and other Gradient Compression Schemes, ICML 2019.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from adapter import AdapterMask, AdapterSpec, AdapterState, pack, unpack
from adapter.mask import Factors
from client_app.memory import DeviceMemory

_PART = "residual"


def pack_with_feedback(
    spec: AdapterSpec,
    changes: AdapterState,
    mask: AdapterMask,
    wire_dtype: str,
    factors: Factors,
    rng: np.random.Generator,
    memory: DeviceMemory,
    server_round: int,
) -> npt.NDArray[np.generic]:
    """Add the residual to the changes, pack them, and remember what the packing kept back.

    The memory holds the residual as whole tensors; one of another rank does not fit any more and is dropped.
    """
    held, whole = memory.get(_PART), AdapterState.zeros(spec).to_tensors()
    views: list[Any] = [*mask.survivors(spec, factors), *(("head", name, ...) for name, _ in spec.head)]
    for part, name, index in views:
        key, values = f"{part}/{name}", changes.parts()[part]
        if key not in held or held[key].shape != whole[key].shape:
            held[key] = whole[key]
        values[name] = (values[name] + held[key][index]).astype(np.float32)
    flat = pack(spec, changes, mask, wire_dtype, factors, rng)
    sent = unpack(spec, flat.tobytes(), mask, wire_dtype, factors)
    for part, name, index in views:
        held[f"{part}/{name}"][index] = changes.parts()[part][name] - sent.parts()[part][name]
    memory.put(_PART, server_round, held)
    return flat
