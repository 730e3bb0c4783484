"""One contiguous buffer per direction: gather the survivors, lay them end to end, take them apart again.

Order in the buffer: for every module of the layout ``lora_A[:, columns]`` then ``lora_B[rows, :]`` (only the active
factors), then every head tensor; C order, one number type for all.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from adapter.mask import FACTORS, AdapterMask
from adapter.protocol import HEADER_BYTES
from adapter.state import AdapterSpec, AdapterState, FloatArray

WIRE_DTYPES: dict[str, np.dtype[np.floating]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
BITS_PER_PARAMETER: dict[str, int] = {name: 8 * dtype.itemsize for name, dtype in WIRE_DTYPES.items()}


class PayloadError(ValueError):
    """A buffer that is not what the instruction asked for."""


def payload_coefficients(spec: AdapterSpec, wire_dtype: str, factors: tuple[str, ...] = FACTORS) -> tuple[float, float]:
    r"""Return (s0, s1) of the payload :math:`S(\gamma) = s_0 + s_1 (1-\gamma)`, in bits.

    Parameters
    ----------
    spec : AdapterSpec
        Layout of the adapter.
    wire_dtype : {"fp32", "fp16"}
        Number type on the wire.
    factors : tuple of str
        Factors that travel.

    Returns
    -------
    tuple of float
        s0: head and message header [bits]; s1: LoRA entries of a dense adapter [bits].
    """
    bits = BITS_PER_PARAMETER[wire_dtype]
    droppable = sum(
        module.r * (("A" in factors) * module.in_features + ("B" in factors) * module.out_features) for module in spec.modules
    )
    return float(spec.head_parameters * bits + 8 * HEADER_BYTES), float(droppable * bits)


def gather(spec: AdapterSpec, state: AdapterState, mask: AdapterMask, factors: tuple[str, ...] = FACTORS) -> AdapterState:
    """Cut a sub-adapter out of a dense adapter: lora_A (r, n') and lora_B (m', r) of the survivors, the head whole."""
    lora_A, lora_B = {}, {}
    for module, kept in zip(spec.modules, mask.modules, strict=True):
        if "A" in factors:
            lora_A[module.name] = state.lora_A[module.name][:, kept.columns]  # (r, n')
        if "B" in factors:
            lora_B[module.name] = state.lora_B[module.name][kept.rows, :]  # (m', r)
    return AdapterState(lora_A, lora_B, {name: state.head[name] for name, _ in spec.head})


def _layout(spec: AdapterSpec, mask: AdapterMask, factors: tuple[str, ...]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return (part, name, shape) of every tensor in the buffer, in order."""
    parts: list[tuple[str, str, tuple[int, ...]]] = []
    for module, kept in zip(spec.modules, mask.modules, strict=True):
        if "A" in factors:
            parts.append(("lora_A", module.name, (module.r, kept.columns.size)))
        if "B" in factors:
            parts.append(("lora_B", module.name, (kept.rows.size, module.r)))
    return parts + [("head", name, shape) for name, shape in spec.head]


def packed_parameters(spec: AdapterSpec, mask: AdapterMask, factors: tuple[str, ...] = FACTORS) -> tuple[int, int]:
    """Return the number of LoRA entries and of head entries in the buffer."""
    adapter = sum(int(np.prod(shape)) for part, _, shape in _layout(spec, mask, factors) if part != "head")
    return adapter, spec.head_parameters


def pack(
    spec: AdapterSpec, sub: AdapterState, mask: AdapterMask, wire_dtype: str, factors: tuple[str, ...] = FACTORS
) -> npt.NDArray[np.floating]:
    """Lay a sub-adapter into one flat buffer.

    Parameters
    ----------
    spec, mask, factors
        Layout, survivors and travelling factors.
    sub : AdapterState
        Values of shape (r, n'), (m', r) and the head, see `gather`.
    wire_dtype : {"fp32", "fp16"}
        Number type on the wire.

    Returns
    -------
    ndarray
        Shape (packed parameters,), little endian.

    Raises
    ------
    PayloadError
        If a tensor does not have the shape that the mask says, or a value does not fit the number type.
    """
    pieces = []
    for part, name, shape in _layout(spec, mask, factors):
        value = getattr(sub, part)[name]
        if value.shape != shape:
            raise PayloadError(f"{name} {part}: expected shape {shape}, found {value.shape}")
        pieces.append(value.reshape(-1))
    with np.errstate(over="ignore"):
        flat: npt.NDArray[np.floating] = np.concatenate(pieces).astype(WIRE_DTYPES[wire_dtype])
    if not np.isfinite(flat).all():
        raise PayloadError(f"a value is not finite in {wire_dtype}; lower training.lr or use wire.dtype=fp32")
    return flat


def unpack(
    spec: AdapterSpec,
    buffer: bytes | memoryview,
    mask: AdapterMask,
    wire_dtype: str,
    factors: tuple[str, ...] = FACTORS,
) -> AdapterState:
    """Take a buffer apart; the inverse of `pack`, in float32.

    Raises
    ------
    PayloadError
        If the length is not exactly what the layout and the mask ask for, or a value is not finite.
    """
    dtype = WIRE_DTYPES[wire_dtype]
    adapter_size, head_size = packed_parameters(spec, mask, factors)
    expected = (adapter_size + head_size) * dtype.itemsize
    if len(buffer) != expected:
        raise PayloadError(f"expected {expected} bytes of {wire_dtype}, found {len(buffer)}")
    flat: FloatArray = np.frombuffer(buffer, dtype=dtype).astype(np.float32)
    if not np.isfinite(flat).all():
        raise PayloadError("the buffer holds a value that is not finite")
    state, offset = AdapterState({}, {}, {}), 0
    for part, name, shape in _layout(spec, mask, factors):
        size = int(np.prod(shape, dtype=np.int64))
        getattr(state, part)[name] = flat[offset : offset + size].reshape(shape)
        offset += size
    return state
