r"""Changes as small whole numbers: unbiased stochastic rounding with one scale per group of entries.

A group shares the step :math:`s = \max_i |x_i| / L` (L = 127 for 8 bits, 7 for 4 bits) and an entry becomes
:math:`q_i = \lfloor x_i / s + u_i \rfloor` with :math:`u_i` uniform in [0, 1), so that :math:`E[s q_i] = x_i` and
:math:`|s q_i - x_i| < s`. Averaged over many devices the rounding errors cancel, which rounding to the nearest would
not do. The groups are the rank components: rows of lora_A, columns of lora_B; in the head the rows of a matrix, or a
whole vector.

References
----------
[Alistarh2017] Alistarh et al., QSGD: Communication-Efficient SGD via Gradient Quantization, NeurIPS 2017.
"""

import numpy as np
import numpy.typing as npt

from adapter.state import FloatArray

Codes = npt.NDArray[np.int8]
Scales = npt.NDArray[np.float32]

LEVELS: dict[str, int] = {"int8": 127, "int4": 7}  # largest code L; -L - 1 is not used: the range is symmetric

_ROUNDING_STREAM = 0x726F756E  # names the random stream of the rounding
_LARGEST = float(np.finfo(np.float32).max)


class PayloadError(ValueError):
    """A buffer that is not what the instruction asked for, or values that fit none."""


def rounding_rng(mask_seed: int, server_round: int) -> np.random.Generator:
    """Return the generator that rounds one device's changes in one round: stateless, from the instruction alone."""
    return np.random.default_rng([_ROUNDING_STREAM, mask_seed, server_round])


def quantise(values: FloatArray, wire_dtype: str, axis: int | None, rng: np.random.Generator) -> tuple[Codes, Scales]:
    r"""Round finite values to codes :math:`\lfloor x / s + u \rfloor`, unbiased [Alistarh2017]; ``rng`` draws u.

    Entries with the same index along ``axis`` share a scale (0: rows, 1: columns); None: all share one. Returns codes
    of the shape of ``values`` in [-L, L], int8 for both number types, and the float32 steps, one per group, >= 0; a
    group of zeros has step 0. `PayloadError` if a value is not finite in float32.
    """
    x = np.asarray(values, dtype=np.float64)
    if not (np.abs(x) <= _LARGEST).all():
        raise PayloadError(f"a value is not finite in float32 and cannot be sent as {wire_dtype}; lower training.lr")
    level = LEVELS[wire_dtype]
    others = tuple(i for i in range(x.ndim) if i != axis)
    exact = np.abs(x).max(axis=others if axis is not None else None, initial=0.0) / level
    # Rounded up to the next float32: the largest entry must not land above L, where clipping would bias it.
    scales = np.asarray(exact, dtype=np.float32)
    scales = np.where(scales < exact, np.nextafter(scales, np.float32(np.inf)), scales)
    scales = np.minimum(scales, _largest_scale(wire_dtype)).reshape(-1)
    step = _spread(scales, x.ndim, axis).astype(np.float64)
    ratio = np.divide(x, step, out=np.zeros_like(x), where=step > 0)
    codes = np.floor(ratio + rng.random(x.shape))
    return np.clip(codes, -level, level).astype(np.int8), scales.astype(np.float32)


def dequantise(codes: Codes, scales: Scales, axis: int | None) -> npt.NDArray[np.float32]:
    """Return ``scale * code`` in float32; the inverse of `quantise` up to less than one step per entry."""
    return codes.astype(np.float32) * _spread(np.asarray(scales, dtype=np.float32), codes.ndim, axis)


def check_scales(scales: Scales, wire_dtype: str) -> None:
    """Raise `PayloadError` unless every step is finite, not negative and small enough for L steps in float32."""
    if not ((scales >= 0) & (scales <= _largest_scale(wire_dtype))).all():
        raise PayloadError("a scale is negative, not finite, or so large that its values would not be finite")


def encode(codes: Codes, wire_dtype: str) -> npt.NDArray[np.uint8]:
    """Return flat codes as bytes: one byte each, or two codes per byte (the first one in the lower half)."""
    flat = codes.reshape(-1)
    if wire_dtype == "int8":
        return flat.view(np.uint8)
    even = np.pad(flat, (0, flat.size % 2)).view(np.uint8)
    low, high = even[0::2], even[1::2]
    return (low & np.uint8(0x0F)) | (high << np.uint8(4))


def decode(data: npt.NDArray[np.uint8], count: int, wire_dtype: str) -> Codes:
    """Inverse of `encode`; `PayloadError` for a code outside [-L, L], or a last half byte that is not zero."""
    if wire_dtype == "int8":
        codes = data.view(np.int8)
    else:
        pairs = np.empty(2 * data.size, dtype=np.int8)
        pairs[0::2] = (data << 4).view(np.int8) >> 4  # the shift of a signed number keeps the sign
        pairs[1::2] = data.view(np.int8) >> 4
        if pairs[count:].any():
            raise PayloadError("the unused half of the last byte is not zero")
        codes = pairs[:count]
    if codes.size and int(codes.min()) < -LEVELS[wire_dtype]:
        raise PayloadError(f"a code lies below {-LEVELS[wire_dtype]}")
    return codes


def _largest_scale(wire_dtype: str) -> np.float32:
    """Largest step s for which L s is finite in float32."""
    return np.nextafter(np.float32(_LARGEST / LEVELS[wire_dtype]), np.float32(0))


def _spread(scales: npt.NDArray[np.float32], ndim: int, axis: int | None) -> npt.NDArray[np.float32]:
    """Scales in a shape that broadcasts along ``axis``."""
    return scales.reshape([-1 if i == axis else 1 for i in range(ndim)])
