"""The adapter as plain arrays: what is trained, sent, averaged and saved.

A LoRA module adds ``scaling * lora_B @ lora_A`` to a frozen weight of shape (out_features, in_features);
``lora_A`` is (r, in_features) and ``lora_B`` is (out_features, r), PEFT's names and orientation for ``nn.Linear``.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]
_INIT_STREAM = 0x696E6974  # names the random stream of factors that are drawn again in a later round


@dataclass(frozen=True)
class ModuleShape:
    """Shape of one LoRA module: ``lora_A`` (r, in_features), ``lora_B`` (out_features, r)."""

    name: str
    out_features: int
    in_features: int
    r: int


@dataclass(frozen=True)
class AdapterSpec:
    """The layout both ends agree on: the LoRA modules in order, then the dense head in order."""

    modules: tuple[ModuleShape, ...]
    head: tuple[tuple[str, tuple[int, ...]], ...] = ()  # name and shape of what is trained and sent densely

    def __post_init__(self) -> None:
        """Refuse an empty or ambiguous layout."""
        names = [module.name for module in self.modules] + [name for name, _ in self.head]
        if not self.modules:
            raise ValueError("an adapter needs at least one LoRA module, found none; check lora.target_modules")
        if len(set(names)) != len(names):
            raise ValueError("module and head names must be unique in an adapter layout")

    @property
    def rank(self) -> int:
        """Rank r of the LoRA modules, the same for all of them."""
        return self.modules[0].r

    @property
    def droppable_parameters(self) -> int:
        """Number of LoRA entries, all of which a dropout rate acts on."""
        return sum(module.r * (module.in_features + module.out_features) for module in self.modules)

    @property
    def head_parameters(self) -> int:
        """Number of entries that always travel."""
        return int(sum(np.prod(shape, dtype=np.int64) for _, shape in self.head))


@dataclass
class AdapterState:
    """Values of an adapter, float arrays keyed by the names of an `AdapterSpec`.

    ``base`` holds the change of frozen weights, (out_features, in_features), for methods that make one.
    """

    lora_A: dict[str, FloatArray]
    lora_B: dict[str, FloatArray]
    head: dict[str, FloatArray] = field(default_factory=dict)
    base: dict[str, FloatArray] = field(default_factory=dict)

    def parts(self) -> dict[str, dict[str, FloatArray]]:
        """Return lora_A, lora_B, head and base under their names."""
        return {"lora_A": self.lora_A, "lora_B": self.lora_B, "head": self.head, "base": self.base}

    def items(self) -> Iterator[tuple[str, str, FloatArray]]:
        """Yield part, name and values of every array."""
        return ((part, name, value) for part, arrays in self.parts().items() for name, value in arrays.items())

    @property
    def rank(self) -> int:
        """Rank of the arrays, which may be lower than the layout's."""
        return next(iter(self.lora_A.values())).shape[0]

    @classmethod
    def seeded(cls, spec: AdapterSpec, seed: int, server_round: int) -> "AdapterState":
        """Return fresh factors of a round: lora_A Kaiming-uniform (sqrt 5) as at the start of a run, lora_B zero.

        Both ends draw them, so they cost no bytes. a = sqrt(5) gives U(-1/sqrt(n), 1/sqrt(n)) for every rank, so the
        first r' rows are the draw for rank r' (of a single module; others cut the draw at full rank).
        """
        rng = np.random.default_rng([_INIT_STREAM, seed, server_round])
        fresh = cls.zeros(AdapterSpec(spec.modules))
        for name, value in fresh.lora_A.items():
            bound = 1 / math.sqrt(value.shape[1])
            fresh.lora_A[name] = rng.uniform(-bound, bound, value.shape).astype(np.float32)
        return fresh

    @classmethod
    def zeros(cls, spec: AdapterSpec, dtype: npt.DTypeLike = np.float32) -> "AdapterState":
        """Return zeros in the shapes of a layout."""
        return cls(
            {m.name: np.zeros((m.r, m.in_features), dtype) for m in spec.modules},
            {m.name: np.zeros((m.out_features, m.r), dtype) for m in spec.modules},
            {name: np.zeros(shape, dtype) for name, shape in spec.head},
        )

    def map(
        self, function: Callable[[FloatArray], FloatArray], parts: Sequence[str] = ("lora_A", "lora_B", "head")
    ) -> "AdapterState":
        """Return the adapter with ``function`` applied to every array of some parts; the others stay as they are."""
        return replace(self, **{part: {k: function(v) for k, v in getattr(self, part).items()} for part in parts})

    def zip(self, other: "AdapterState", function: Callable[[FloatArray, FloatArray], FloatArray]) -> "AdapterState":
        """Return ``function`` of the arrays of both adapters, name by name; the base stays as it is."""
        pairs = ((self.lora_A, other.lora_A), (self.lora_B, other.lora_B), (self.head, other.head))
        lora_A, lora_B, head = ({k: function(v, theirs[k]) for k, v in ours.items()} for ours, theirs in pairs)
        return AdapterState(lora_A, lora_B, head, self.base)

    def copy(self) -> "AdapterState":
        """Return a deep copy."""
        return self.map(lambda value: value.copy(), tuple(self.parts()))

    def cut_rank(self, rank: int) -> "AdapterState":
        """Return views of the first ``rank`` rows of every lora_A and columns of every lora_B; the rest is shared."""
        rows = self.map(lambda value: value[:rank], ("lora_A",))
        return rows.map(lambda value: value[:, :rank], ("lora_B",))

    def padded(self, spec: AdapterSpec) -> "AdapterState":
        """Return the adapter with zeros for the rank components that it lacks to the layout ``spec``."""
        missing = spec.rank - self.rank
        rows = self.map(lambda value: np.pad(value, ((0, missing), (0, 0))), ("lora_A",))
        return rows.map(lambda value: np.pad(value, ((0, 0), (0, missing))), ("lora_B",))

    def to_tensors(self) -> dict[str, FloatArray]:
        """Return all arrays in float32 by flat names, ``part/name``, as a file of tensors wants them."""
        return {f"{part}/{name}": np.ascontiguousarray(value, dtype=np.float32) for part, name, value in self.items()}

    @classmethod
    def from_tensors(cls, flat: Mapping[str, FloatArray]) -> "AdapterState":
        """Inverse of `to_tensors`."""
        state = cls({}, {})
        for key, value in flat.items():
            part, name = key.split("/", 1)
            getattr(state, part)[name] = value
        return state

    def check(self, spec: AdapterSpec) -> None:
        """Raise ValueError unless names and shapes are exactly those of ``spec``; the base may lack any module."""
        found = {f"{part}/{name}": value.shape for part, name, value in self.items()}
        expected = {f"{part}/{name}": value.shape for part, name, value in AdapterState.zeros(spec).items()}
        base = {f"base/{m.name}": (m.out_features, m.in_features) for m in spec.modules}
        expected |= {key: shape for key, shape in base.items() if key in found}
        for key in sorted(found.keys() | expected.keys()):
            shape, wanted = (shapes.get(key, "none") for shapes in (found, expected))
            if shape != wanted:
                raise ValueError(f"adapter tensor {key}: expected shape {wanted}, found {shape}")
