"""Settings of the model and of its LoRA modules: plain frozen data, no framework imported."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

ModelName = Literal["minilm", "smollm2", "tiny", "hub", "mlp"]
Pooling = Literal["mean", "cls"]
Head = Literal["linear", "mlp"]
Kind = Literal["classification", "regression", "causal"]


class ModelError(ValueError):
    """A model that cannot be located, verified, built or adapted; the text is one line for the user."""


@dataclass(frozen=True)
class ModelSettings:
    """Which model, and how its hidden states become outputs."""

    # minilm or smollm2 (files of installed packages), tiny (random, for tests), hub (any Hugging Face encoder; for
    # causal tasks any causal language model) or mlp (a random network of two layers, for images)
    name: ModelName = "minilm"
    path: str | None = None  # hub id or local folder; used by hub only
    # mean over the unmasked tokens, or cls, the token that has seen all of a text: an encoder's first, a decoder's last
    pooling: Pooling = "mean"
    head: Head = "linear"  # or mlp: dense, tanh, linear
    freeze_head: bool = False  # keep the seeded initial head: nothing but LoRA factors is trained and sent
    dropout: float = 0.0  # inside the encoder while training; no LoRA dropout
    max_tokens: int = 128  # longer texts are cut; batches are padded to their own longest text only
    hidden_size: int = 200  # hidden units of mlp
    load_in_4bit: bool = False  # keep the frozen weights of hub in 4 bits (needs bitsandbytes and a GPU)
    gguf_file: str | None = None  # a GGUF file in place of path; de-quantised once into the user's cache folder
    chat_template: str | None = None  # Jinja text, or a file of it, in place of the tokenizer's own
    frozen_weight: bool = True  # False: mlp's hidden layer is the product of its factors alone, lora_B drawn, too

    def __post_init__(self) -> None:
        hub, own_tokenizer = self.name == "hub", self.name in ("hub", "smollm2")
        path = "null beside model.gguf_file" if self.gguf_file else "a hub id or a local folder when model=hub"
        for key, ok, expected in (
            ("name", self.name in get_args(ModelName), f"one of {', '.join(get_args(ModelName))}"),
            ("pooling", self.pooling in get_args(Pooling), "mean or cls"),
            ("head", self.head in get_args(Head), "linear or mlp"),
            ("dropout", 0.0 <= self.dropout < 1.0, "a number in [0, 1)"),
            ("max_tokens", self.max_tokens >= 4, "at least 4"),
            ("hidden_size", self.hidden_size >= 1, "a positive integer"),
            ("frozen_weight", self.frozen_weight or self.name == "mlp", "true unless model=mlp"),
            ("load_in_4bit", hub or not self.load_in_4bit, "false unless model=hub"),
            ("gguf_file", hub or not self.gguf_file, "null unless model=hub"),
            ("chat_template", own_tokenizer or not self.chat_template, "null unless model=hub or model=smollm2"),
            ("path", not hub or bool(self.path) != bool(self.gguf_file), path),
        ):
            _require(ok, f"model.{key}", expected, getattr(self, key))


@dataclass(frozen=True)
class LoraSettings:
    """Rank, scale and place of the LoRA modules; `conf.schema` checks their ranges."""

    r: int = 8  # rank of every module
    lora_alpha: float = 16.0  # scale: lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora
    use_rslora: bool = False  # rank-stabilised scale
    # Last parts of the adapted modules' names, or all-linear, every linear module of the layers; None takes the
    # architecture's usual ones (PEFT's, mostly the attention's projections), and all-linear where it has none.
    target_modules: tuple[str, ...] | None = None
    layers: Literal["all"] | int = "all"  # or only so many upper layers: the prefix below them then never changes
    init: Literal["kaiming", "orthogonal"] = "kaiming"  # lora_A: uniform with sqrt 5, or orthonormal rows
    lora_dropout: float = 0.0  # PEFT's: share of the factors' inputs that is dropped in a training step; not gamma

    def __post_init__(self) -> None:
        _require(self.lora_alpha > 0, "lora.alpha", "a positive number", self.lora_alpha)
        if self.target_modules is not None:
            object.__setattr__(self, "target_modules", tuple(self.target_modules))  # a list would not hash
            _require(bool(self.target_modules), "lora.target_modules", "at least one module name, or null", [])

    @property
    def scaling(self) -> float:
        """Factor s of the update ``s * lora_B @ lora_A``."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


@dataclass(frozen=True)
class ComputeSettings:
    """How a model is computed; the learning curve does not depend on it beyond rounding."""

    # `tasks.speed.frozen_linear`: frozen layer and LoRA factors as one operation, products with frozen weights by the
    # library that is faster here; else PEFT's and PyTorch's own layers.
    fused_lora: bool = True
    # Number type of the frozen weights; auto: bfloat16 on hardware that is faster with it, see
    # `tasks.models.placement.pick_dtype`. Factors and head stay in float32.
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"  # auto: a GPU where this process sees one; cpu, cuda, or one GPU of several: cuda:1
    gradient_checkpointing: bool = False  # inner states of a layer are computed again in the backward pass, not kept


@dataclass(frozen=True)
class PrefixSettings:
    """How much of the frozen lower layers' states may be kept, and where."""

    memory_mib: float = 128.0  # limit of one process
    disk_mib: float = 1024.0  # limit of the files
    folder: str | None = None  # None: `fedlodrop` in this user's cache folder


def one_line(error: BaseException, limit: int = 200) -> str:
    """First line of an exception's text, for a message of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:limit]


@contextlib.contextmanager
def told_as(kind: type[ValueError], text: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever a library raises into one line for the user: they raise many types for one cause."""
    try:
        yield
    except Exception as error:
        raise kind(f"{text}: {one_line(error)}{remedy}") from error


def some_of(names: Sequence[str], limit: int = 5) -> str:
    """List names for a message of one line, and how many more there are."""
    more = f" (and {len(names) - limit} more)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _require(ok: bool, key: str, expected: str, found: object) -> None:
    if not ok:
        raise ModelError(f"{key}: expected {expected}, found {found!r}")
