"""Who is drawn for a round, from seed and round alone; of these, `optimizer.*.admission` decides who sits out."""

import numpy as np
import numpy.typing as npt

_STREAM = 0x73616D70  # names the participants' random stream
_SECRET_STREAMS = {"draw": 0x73656372, "noise": 0x63656E74}  # names those of central privacy where it is seeded


def secret_generator(noise_seed: int | None, purpose: str, server_round: int) -> np.random.Generator:
    """Return what a round of central privacy draws from: the operating system, or a seed, which voids the guarantee."""
    return np.random.default_rng(None if noise_seed is None else [_SECRET_STREAMS[purpose], noise_seed, server_round])


def draw_participants(
    num_devices: int, fraction: float, devices_per_round: int | None, seed: int, server_round: int
) -> npt.NDArray[np.int64]:
    """Draw a round's devices, ascending, from seed and round alone; ``devices_per_round`` goes before ``fraction``."""
    count = devices_per_round if devices_per_round is not None else int(np.ceil(fraction * num_devices - 1e-9))
    count = min(max(count, 1), num_devices)
    if count == num_devices:
        return np.arange(num_devices, dtype=np.int64)
    rng = np.random.default_rng([_STREAM, seed, server_round])
    return np.sort(rng.choice(num_devices, count, replace=False)).astype(np.int64)
