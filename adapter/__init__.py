"""Sub-adapters: the masks, the packing and the wire contract that a device and the server must share.

References
----------
[Xie2026] Xie et al., FedLoDrop: Federated LoRA with Dropout, arXiv 2510.12078.
"""

from adapter.mask import AdapterMask, mask_seed, sample_mask
from adapter.pack import gather, pack, payload_coefficients, unpack
from adapter.protocol import HEADER_BYTES, DeviceAnnouncement, ProtocolError, RoundInstruction, RoundReport
from adapter.quantize import PayloadError, rounding_rng
from adapter.state import AdapterSpec, AdapterState, ModuleShape

__all__ = [
    "HEADER_BYTES",
    "AdapterMask",
    "AdapterSpec",
    "AdapterState",
    "DeviceAnnouncement",
    "ModuleShape",
    "PayloadError",
    "ProtocolError",
    "RoundInstruction",
    "RoundReport",
    "gather",
    "mask_seed",
    "pack",
    "payload_coefficients",
    "rounding_rng",
    "sample_mask",
    "unpack",
]
