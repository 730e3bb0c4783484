"""One contiguous buffer per direction: gather the survivors, lay them end to end, take them apart again.

Order in the buffer: for every module of the layout ``lora_A[:, columns]`` then ``lora_B[rows, :]`` (only the active
factors), then every head tensor; C order, one number type for all. With int8 and int4 the float32 scales of all tensors
come first, in the same order, then all codes (see `adapter.quantize`).
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from adapter.mask import FACTORS, AdapterMask, Factors
from adapter.protocol import HEADER_BYTES
from adapter.quantize import LEVELS, PayloadError, check_scales, decode, dequantise, encode, quantise
from adapter.state import AdapterSpec, AdapterState

# The number type of the buffer as the message names it; quantised buffers are plain bytes.
_BUFFER_TYPES = {"fp32": "<f4", "fp16": "<f2", "int8": "|u1", "int4": "|u1"}
WIRE_DTYPES: dict[str, np.dtype[np.generic]] = {name: np.dtype(code) for name, code in _BUFFER_TYPES.items()}
BITS_PER_PARAMETER: dict[str, int] = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
_SCALE = np.dtype("<f4")


def payload_coefficients(spec: AdapterSpec, wire_dtype: str, factors: Factors = FACTORS) -> tuple[float, float]:
    r"""Return (s0, s1) of the payload :math:`S(\gamma) = s_0 + s_1 (1-\gamma)` of one direction, in bits.

    s0 is head, scales and message header; s1 the LoRA entries of the travelling factors of a dense adapter.
    """
    bits = BITS_PER_PARAMETER[wire_dtype]
    sizes = [("A" in factors) * m.in_features + ("B" in factors) * m.out_features for m in spec.modules]
    fixed = spec.head_parameters * bits + 8 * HEADER_BYTES
    if wire_dtype in LEVELS:
        # The scales do not shrink with the dropout rate; an odd number of 4-bit codes leaves half a byte empty.
        scales = spec.rank * len(spec.modules) * len(factors) + sum(_groups("head", shape) for _, shape in spec.head)
        fixed += 8 * _SCALE.itemsize * scales + 8 - bits
    return float(fixed), float(spec.rank * sum(sizes) * bits)


def adapter_bytes(spec: AdapterSpec, mask: AdapterMask, wire_dtype: str, factors: Factors = FACTORS) -> int:
    """Return the bytes of a buffer that the LoRA entries take, their scales included and the head left out."""
    entries = sum(math.prod(shape) for part, _, shape in _layout(spec, mask, factors) if part != "head")
    scales = spec.rank * len(spec.modules) * len(factors) if wire_dtype in LEVELS else 0
    return -(-entries * BITS_PER_PARAMETER[wire_dtype] // 8) + scales * _SCALE.itemsize


def gather(spec: AdapterSpec, state: AdapterState, mask: AdapterMask, factors: Factors = FACTORS) -> AdapterState:
    """Cut a sub-adapter out of a dense adapter: lora_A (r, n') and lora_B (m', r) of the survivors, the head whole."""
    sub, whole = AdapterState({}, {}, {name: state.head[name] for name, _ in spec.head}), state.parts()
    for part, name, kept in mask.survivors(spec, factors):
        sub.parts()[part][name] = whole[part][name][kept]
    return sub


def _layout(spec: AdapterSpec, mask: AdapterMask, factors: Factors) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return (part, name, shape) of every tensor in the buffer, in order."""
    parts: list[tuple[str, str, tuple[int, ...]]] = []
    for module, kept in zip(spec.modules, mask.modules, strict=True):
        if "A" in factors:
            parts.append(("lora_A", module.name, (module.r, kept.columns.size)))
        if "B" in factors:
            parts.append(("lora_B", module.name, (kept.rows.size, module.r)))
    return parts + [("head", name, shape) for name, shape in spec.head]


def _axis(part: str, shape: tuple[int, ...]) -> int | None:
    """Axis along which a tensor's scales lie: the rank of lora_A and lora_B, the outputs of a head matrix."""
    return {"lora_A": 0, "lora_B": 1}.get(part, 0 if len(shape) > 1 else None)


def _groups(part: str, shape: tuple[int, ...]) -> int:
    axis = _axis(part, shape)
    return 1 if axis is None else shape[axis]


def pack(
    spec: AdapterSpec,
    sub: AdapterState,
    mask: AdapterMask,
    wire_dtype: str,
    factors: Factors = FACTORS,
    rng: np.random.Generator | None = None,
) -> npt.NDArray[np.generic]:
    """Lay a sub-adapter, lora_A (r, n'), lora_B (m', r) and the head, into one flat, little-endian buffer.

    int8 and int4 give bytes; they round at random (``rng``, see `adapter.quantize.rounding_rng`) and suit changes, not
    values. `PayloadError` if a tensor has another shape than the mask says, or a value does not fit the number type.
    """
    pieces = []
    for part, name, shape in _layout(spec, mask, factors):
        value = sub.parts()[part][name]
        if value.shape != shape:
            raise PayloadError(f"{name} {part}: expected shape {shape}, found {value.shape}")
        pieces.append((part, value))
    if wire_dtype in LEVELS:
        if rng is None:
            raise ValueError(f"{wire_dtype} rounds at random: pack needs a generator, found none")
        coded = [quantise(value, wire_dtype, _axis(part, value.shape), rng) for part, value in pieces]
        scales = np.concatenate([scale for _, scale in coded]).astype(_SCALE).view(np.uint8)
        return np.concatenate([scales, encode(np.concatenate([codes.reshape(-1) for codes, _ in coded]), wire_dtype)])
    with np.errstate(over="ignore"):
        nothing = np.zeros(0, dtype=np.float32)  # a message may bring no factor and no head
        flat = np.concatenate([nothing, *(value.reshape(-1) for _, value in pieces)]).astype(WIRE_DTYPES[wire_dtype])
    if not np.isfinite(flat).all():
        raise PayloadError(f"a value is not finite in {wire_dtype}; lower training.lr or use wire.dtype=fp32")
    return flat


def unpack(
    spec: AdapterSpec, buffer: bytes, mask: AdapterMask, wire_dtype: str, factors: Factors = FACTORS
) -> AdapterState:
    """Take a buffer apart; the inverse of `pack`, in float32 (up to one step per entry where it is quantised).

    `PayloadError` if the length is not exactly what layout and mask ask for, a value or scale is not finite, a scale is
    negative, or a code lies outside its range.
    """
    layout = _layout(spec, mask, factors)
    entries = sum(math.prod(shape) for _, _, shape in layout)
    quantised = wire_dtype in LEVELS
    num_scales = sum(_groups(part, shape) for part, _, shape in layout) if quantised else 0
    expected = num_scales * _SCALE.itemsize + -(-entries * BITS_PER_PARAMETER[wire_dtype] // 8)
    if len(buffer) != expected:
        raise PayloadError(f"expected {expected} bytes of {wire_dtype}, found {len(buffer)}")
    scales = np.frombuffer(buffer, dtype=_SCALE, count=num_scales)
    raw = np.frombuffer(buffer, dtype=WIRE_DTYPES[wire_dtype], offset=num_scales * _SCALE.itemsize)
    flat: npt.NDArray[Any] = raw.astype(np.float32, copy=False)
    if quantised:
        check_scales(scales, wire_dtype)
        flat = decode(raw, entries, wire_dtype)
    if not np.isfinite(flat).all():
        raise PayloadError("the buffer holds a value that is not finite")
    state, offset, group = AdapterState({}, {}, {}), 0, 0
    for part, name, shape in layout:
        value = flat[offset : (offset := offset + math.prod(shape))].reshape(shape)
        if quantised:
            steps = scales[group : (group := group + _groups(part, shape))]
            value = dequantise(value, steps, _axis(part, shape))
        state.parts()[part][name] = value
    return state
