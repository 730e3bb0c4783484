"""What a device keeps between rounds, in Flower's ``Context.state``: it survives in simulation and in deployment.

Every part is a set of float32 arrays with a version, one part per purpose, replaced as a whole: the memory does not
grow with the rounds. Changes count when `commit` is called; a device that fails half-way through a round remembers what
it knew before.

    lora_A, lora_B     factors as received, whole; version: the round they were aggregated in
    base               change of the frozen weights; version: number of updates added
    personal           lora_B and head of a personalised method; version: the round they were trained in
    moments-<what>     state of the torch optimizer for one factor or the head
    residual           what quantised uploads have left unsaid so far
"""

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from adapter.state import FloatArray

_PREFIX = "memory."
Arrays = dict[str, FloatArray]


class MemoryLostError(RuntimeError):
    """The server counts on something that this device does not hold (any more); it is sent everything next time."""


class DeviceMemory:
    """Parts by name, each with a version; reads see earlier writes, `commit` stores them.

    Of the device's ``Context.state``, only records named ``memory.<part>`` and ``memory.<part>.version`` are touched.
    """

    def __init__(self, state: RecordDict) -> None:
        self._state = state
        self._written: dict[str, tuple[int, Arrays]] = {}

    def version(self, part: str) -> int:
        """Return the version of a part, 0 for one that is not held."""
        if part in self._written:
            return self._written[part][0]
        record = self._state.config_records.get(_PREFIX + part + ".version")
        return 0 if record is None else int(record["version"])  # type: ignore[arg-type]

    def get(self, part: str) -> Arrays:
        """Return copies of a part's arrays, empty for one that is not held."""
        if part in self._written:
            return {name: value.copy() for name, value in self._written[part][1].items()}
        record = self._state.array_records.get(_PREFIX + part)
        return {} if record is None else {name: array.numpy() for name, array in record.items()}

    def require(self, part: str, version: int) -> Arrays:
        """Return a part of exactly this version; MemoryLostError if the device holds another one, or none."""
        if self.version(part) != version:
            held = f"version {self.version(part)}" if self.version(part) else "none"
            raise MemoryLostError(f"expected version {version} of {part} in this device's memory, found {held}")
        return self.get(part)

    def put(self, part: str, version: int, arrays: Mapping[str, FloatArray]) -> None:
        """Replace a part."""
        self._written[part] = (version, {name: np.array(value, dtype=np.float32) for name, value in arrays.items()})

    def commit(self) -> None:
        """Store what was put; call it once the device's answer is complete."""
        for part, (version, arrays) in self._written.items():
            self._state[_PREFIX + part] = ArrayRecord({name: Array(value) for name, value in arrays.items()})
            self._state[_PREFIX + part + ".version"] = ConfigRecord({"version": version})
        self._written = {}
