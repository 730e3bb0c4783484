"""Factors that both ends draw from a seed instead of sending them."""

import math

import numpy as np

from adapter.state import AdapterSpec, FloatArray

_INIT_STREAM = 0x696E6974  # names the random stream of factors that are drawn again in a later round


def seeded_factors(
    spec: AdapterSpec, seed: int, server_round: int
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Return fresh factors of a round: lora_A Kaiming-uniform (sqrt 5) as at the start of a run, lora_B zero.

    Both ends draw them, so they cost no bytes. a = sqrt(5) gives U(-1/sqrt(n), 1/sqrt(n)) for every rank, so the first
    r' rows are the draw for rank r'.
    """
    rng = np.random.default_rng([_INIT_STREAM, seed, server_round])
    lora_A: dict[str, FloatArray] = {}
    for module in spec.modules:
        bound = 1 / math.sqrt(module.in_features)
        lora_A[module.name] = rng.uniform(-bound, bound, (module.r, module.in_features)).astype(np.float32)
    return lora_A, {module.name: np.zeros((module.out_features, module.r), dtype=np.float32) for module in spec.modules}
