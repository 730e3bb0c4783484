"""Sub-adapters: the masks, the packing and the wire contract that a device and the server must share.

References
----------
[Xie2026] Xie et al., FedLoDrop: Federated LoRA with Dropout, arXiv 2510.12078.
[Lin2024] Lin et al., LoRA Dropout as a sparsity regularizer, arXiv 2404.09610.
"""

from adapter.mask import AdapterMask, ModuleMask, kept_count, mask_seed, sample_mask
from adapter.pack import (
    PayloadError,
    adapter_bytes,
    gather,
    pack,
    packed_parameters,
    payload_coefficients,
    unpack,
)
from adapter.protocol import HEADER_BYTES, ProtocolError, RoundInstruction, RoundReport
from adapter.quantize import dequantise, quantise, rounding_rng
from adapter.state import AdapterSpec, AdapterState, ModuleShape

__all__ = [
    "HEADER_BYTES",
    "AdapterMask",
    "AdapterSpec",
    "AdapterState",
    "ModuleMask",
    "ModuleShape",
    "PayloadError",
    "ProtocolError",
    "RoundInstruction",
    "RoundReport",
    "adapter_bytes",
    "dequantise",
    "gather",
    "kept_count",
    "mask_seed",
    "pack",
    "packed_parameters",
    "payload_coefficients",
    "quantise",
    "rounding_rng",
    "sample_mask",
    "unpack",
]
