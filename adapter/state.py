"""The adapter as plain arrays: what is trained, sent, averaged and saved.

A LoRA module adds ``scaling * lora_B @ lora_A`` to a frozen weight of shape (out_features, in_features);
``lora_A`` is (r, in_features) and ``lora_B`` is (out_features, r), PEFT's names and orientation for ``nn.Linear``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True)
class ModuleShape:
    """Shape of one LoRA module: ``lora_A`` (r, in_features), ``lora_B`` (out_features, r)."""

    name: str
    out_features: int
    in_features: int
    r: int

    @property
    def num_parameters(self) -> int:
        """Entries of both factors, r * (in_features + out_features)."""
        return self.r * (self.in_features + self.out_features)


@dataclass(frozen=True)
class AdapterSpec:
    """The layout both ends agree on: the LoRA modules in order, then the dense head in order.

    Parameters
    ----------
    modules : tuple of ModuleShape
        LoRA modules, in the order in which they are packed.
    head : tuple of (str, tuple of int)
        Name and shape of every tensor that is trained and sent densely.
    """

    modules: tuple[ModuleShape, ...]
    head: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        """Refuse an empty or ambiguous layout."""
        names = [module.name for module in self.modules] + [name for name, _ in self.head]
        if not self.modules:
            raise ValueError("an adapter needs at least one LoRA module, found none; check lora.target_modules")
        if len(set(names)) != len(names):
            raise ValueError("module and head names must be unique in an adapter layout")

    @property
    def droppable_parameters(self) -> int:
        """Number of LoRA entries, all of which a dropout rate acts on."""
        return sum(module.num_parameters for module in self.modules)

    @property
    def head_parameters(self) -> int:
        """Number of entries that always travel."""
        return int(sum(np.prod(shape, dtype=np.int64) for _, shape in self.head))


@dataclass
class AdapterState:
    """Values of an adapter, float arrays keyed by the names of an `AdapterSpec`.

    ``base`` holds the change of frozen weights, (out_features, in_features), for methods that make one; otherwise it is empty.
    """

    lora_A: dict[str, FloatArray]
    lora_B: dict[str, FloatArray]
    head: dict[str, FloatArray] = field(default_factory=dict)
    base: dict[str, FloatArray] = field(default_factory=dict)

    def copy(self) -> AdapterState:
        """Return a deep copy."""
        return AdapterState(
            {name: value.copy() for name, value in self.lora_A.items()},
            {name: value.copy() for name, value in self.lora_B.items()},
            {name: value.copy() for name, value in self.head.items()},
            {name: value.copy() for name, value in self.base.items()},
        )

    def cut_rank(self, rank: int) -> AdapterState:
        """Return the first ``rank`` rows of every lora_A and columns of every lora_B; the rest is shared, not copied."""
        lora_A = {name: value[:rank] for name, value in self.lora_A.items()}
        return AdapterState(lora_A, {name: value[:, :rank] for name, value in self.lora_B.items()}, self.head, self.base)

    def padded(self, spec: AdapterSpec) -> AdapterState:
        """Return the adapter with zeros for the rank components that it lacks to the layout ``spec``."""
        missing = {module.name: module.r - self.lora_A[module.name].shape[0] for module in spec.modules}
        lora_A = {name: np.pad(value, ((0, missing[name]), (0, 0))) for name, value in self.lora_A.items()}
        lora_B = {name: np.pad(value, ((0, 0), (0, missing[name]))) for name, value in self.lora_B.items()}
        return AdapterState(lora_A, lora_B, self.head, self.base)

    def check(self, spec: AdapterSpec) -> None:
        """Raise ValueError unless names and shapes are exactly those of ``spec``."""
        expected: dict[str, tuple[int, ...]] = {}
        found = {f"{name}.lora_A": value.shape for name, value in self.lora_A.items()}
        found |= {f"{name}.lora_B": value.shape for name, value in self.lora_B.items()}
        found |= {name: value.shape for name, value in self.head.items()}
        for module in spec.modules:
            expected[f"{module.name}.lora_A"] = (module.r, module.in_features)
            expected[f"{module.name}.lora_B"] = (module.out_features, module.r)
        expected |= dict(spec.head)
        for name, shape in expected.items():
            if name not in found:
                raise ValueError(f"adapter tensor {name} is missing; expected shape {shape}")
            if found[name] != shape:
                raise ValueError(f"adapter tensor {name} has shape {found[name]}, expected {shape}")
        extra = sorted(set(found) - set(expected))
        if extra:
            raise ValueError(f"adapter holds a tensor that the layout does not know: {extra[0]}")
        shapes = {module.name: (module.out_features, module.in_features) for module in spec.modules}
        for name, value in self.base.items():
            if shapes.get(name) != value.shape:
                raise ValueError(f"base change of {name} has shape {value.shape}, expected {shapes.get(name)}")
