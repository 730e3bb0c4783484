"""A transformer encoder, masked pooling and a head; and how its configuration and weights are loaded."""

import contextlib
import importlib.util
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tasks.models.files import MINILM_HUB_ID, find_minilm
from tasks.models.gguf_import import model_source
from tasks.models.tokenizer import TINY_VOCABULARY
from tasks.settings import Kind, ModelError, ModelSettings, some_of, told_as

TINY_SEED = 20240229  # the tiny models stand for published weights, so they do not vary with the run's seed

# Every name under which an architecture keeps a dropout probability in its configuration.
_DROPOUT_NAMES = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "dropout_rate", "attention_dropout"),
    *("activation_dropout", "embedding_dropout", "mlp_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"),
)


class TextClassifier(nn.Module):
    """Encoder with a ``last_hidden_state`` (batch, tokens, hidden), pooling and head; ``kind`` selects the loss."""

    def __init__(self, encoder: Any, settings: ModelSettings, num_outputs: int, kind: Kind) -> None:
        super().__init__()
        # PEFT saves this name.
        self.name_or_path = getattr(encoder.config, "_name_or_path", "") or f"fedlodrop-{settings.name}"
        self.kind = kind
        self.settings = settings
        self.num_outputs = num_outputs
        self.head_std: float = 0.02
        self.encoder = encoder
        self.causal = False  # whether a token sees nothing after it; `build_base` finds out where it matters
        self.layered: Callable[..., Tensor] | None = None  # from `tasks.models.placement.layered`, by `build_base`
        hidden = width(encoder.config)
        output = nn.Linear(hidden, num_outputs)
        self.head: nn.Module = output
        if settings.head == "mlp":
            layers = {"dense": nn.Linear(hidden, hidden), "tanh": nn.Tanh(), "output": output}
            self.head = nn.Sequential(OrderedDict(layers))

    @property
    def pooling(self) -> str:
        """How tokens become one vector: ``mean``, or the token that saw all others, ``cls`` or a decoder's ``last``."""
        return "last" if self.settings.pooling == "cls" and self.causal else self.settings.pooling

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        states: Tensor | None = None,
        first_layer: int = 0,
    ) -> Tensor:
        """Return logits, ``(batch, tokens)`` -> ``(batch, outputs)``.

        ``states`` (batch, tokens, hidden), what enters layer ``first_layer``, may stand in place of ``input_ids``.
        """
        assert attention_mask is not None
        if self.layered is not None:
            hidden = self.layered(self.encoder, input_ids, attention_mask, token_type_ids, states, first_layer)
        else:
            extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **extra).last_hidden_state
        pooled = pool(hidden, attention_mask, self.pooling)
        logits: Tensor = self.head(pooled.float())  # the head is trained, in float32 whatever the encoder computes in
        return logits


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode; its own comes back."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def two_texts(padding: int = 0, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return token ids and mask of two short texts of unequal length, to try what a transformer computes."""
    ids = torch.tensor([[5, 9, 7, 11, 6, 8], [6, 7, 5, *[padding] * 3]], device=device)
    return ids, torch.tensor([[1] * 6, [1] * 3 + [0] * 3], device=device)


def last_sees_all(encoder: Any) -> bool:
    """Say whether an encoder is a decoder without its output layer: only the last token has seen the whole text."""
    states = later_tokens_change(lambda **inputs: encoder(**inputs).last_hidden_state, encoder.get_input_embeddings())
    return states <= rounding(encoder)


def later_tokens_change(compute: Callable[..., Tensor], embedding: Any) -> float:
    """Return how much later tokens change what ``compute`` makes of earlier ones, relative to the largest number.

    Tried on two texts that differ in their last three tokens; a mixture of experts groups other tokens with the first
    three, and rounds otherwise. ``compute`` takes ``input_ids`` and ``attention_mask``; numbers are (texts, tokens,
    ...).
    """
    ids = torch.tensor([[5, 9, 7, 11, 6, 8], [5, 9, 7, 4, 10, 3]], device=embedding.weight.device)
    ids %= embedding.num_embeddings
    with torch.no_grad():
        found = compute(input_ids=ids, attention_mask=torch.ones_like(ids))[:, :3].float()
    return float((found[0] - found[1]).abs().max() / found.abs().max())


def rounding(transformer: Any) -> float:
    """Return the largest change that is still rounding: larger where the weights are kept in 4 bits."""
    return 2e-2 if getattr(transformer, "is_quantized", False) else 1e-4


def width(config: Any) -> int:
    """Return the size of an encoder's last hidden states; some project them (OPT-350m)."""
    return int(getattr(config, "word_embed_proj_dim", config.get_text_config().hidden_size))


def pool(hidden: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """Reduce each text to one vector: ``cls`` the first token, ``last`` the last, ``mean`` sum_t m_t h_t / sum_t m_t.

    (batch, tokens, hidden) and a mask (batch, tokens), 0 on padding -> (batch, hidden).
    """
    if pooling == "cls":
        return hidden[:, 0]  # (batch, hidden)
    if pooling == "last":
        positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        last = (attention_mask * positions).argmax(dim=1)  # (batch,)
        return hidden[torch.arange(len(last), device=last.device), last]  # (batch, hidden)
    weight = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (batch, tokens, 1)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)  # (batch, hidden)


def load_encoder(model: ModelSettings) -> Any:
    """Load the encoder with its weights; a random one is drawn from the global generator, which the caller forks."""
    config = encoder_config(model)
    if model.name == "tiny":
        torch.default_generator.manual_seed(TINY_SEED)  # inside the caller's fork_rng
        return random_encoder(config).float()
    from transformers import AutoModel

    source = find_minilm() if model.name == "minilm" else model_source(model)
    encoder = pretrained(AutoModel, source, model, config=config, **_constructor_options(config))
    if model.name == "minilm":
        encoder.config._name_or_path = MINILM_HUB_ID  # saved adapters name the published model, not a folder of here
    return encoder


def pretrained(factory: Any, source: str | Path, model: ModelSettings, **options: Any) -> Any:
    """Return ``factory.from_pretrained(source)`` in float32, or with its linear layers in 4 bits.

    Its ``unused_weights`` names what else the checkpoint holds, without poolers: none is computed. `ModelError` if
    weights cannot be loaded or some are missing, or 4 bits cannot be had.
    """
    if model.load_in_4bit:
        options |= four_bit_options()
    with _quiet(), told_as(ModelError, f"model {model.name}: no weights could be loaded from {str(source)!r}"):
        loaded, found = factory.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    missing = _used({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])})
    if missing:  # transformers would draw them at random
        raise ModelError(
            f"model {model.name}: expected every weight of {type(loaded).__name__} in {str(source)!r}, "
            f"found {len(missing)} missing or of another shape: {some_of(missing)}"
        )
    loaded.unused_weights = _used(found["unexpected_keys"])
    return loaded


def _used(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in names if "pooler" not in name.split(".")))


def four_bit_options() -> dict[str, Any]:
    """Return what loads weights in 4 bits (NF4) on the GPU; `ModelError` without bitsandbytes or a GPU."""
    missing = [] if importlib.util.find_spec("bitsandbytes") else ["no bitsandbytes (pip install bitsandbytes)"]
    missing += [] if torch.cuda.is_available() else ["no CUDA GPU"]
    if missing:
        raise ModelError(f"model.load_in_4bit: expected bitsandbytes and a CUDA GPU, found {' and '.join(missing)}")
    from transformers import BitsAndBytesConfig

    quantised: Any = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    return {"quantization_config": quantised, "device_map": {"": 0}}


def encoder_config(model: ModelSettings) -> Any:
    """Return the encoder's configuration, with the dropout of the settings."""
    from transformers import AutoConfig, BertConfig

    config: Any
    if model.name == "tiny":
        config = BertConfig(
            vocab_size=TINY_VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=max(model.max_tokens, 128),
        )
    elif model.name == "minilm":
        config = AutoConfig.from_pretrained(find_minilm(verify=False))
        config._name_or_path = MINILM_HUB_ID
    else:
        config = hub_config(model_source(model))
    if config.is_encoder_decoder:
        raise ModelError(
            "model.path: expected an encoder or a decoder for this task, found an encoder-decoder of architecture "
            f"{config.model_type!r}"
        )
    return adjusted(config, model)


def adjusted(config: Any, model: ModelSettings) -> Any:
    """Set every dropout probability and check the number of positions."""
    for name in _DROPOUT_NAMES:
        if hasattr(config, name):
            setattr(config, name, model.dropout)
    limit = getattr(config, "max_position_embeddings", None)
    if limit and model.max_tokens > limit:
        raise ModelError(f"model.max_tokens: expected at most the model's {limit} positions, found {model.max_tokens}")
    return config


def hub_config(path: str) -> Any:
    """Return the configuration of a hub id or a local folder."""
    from transformers import AutoConfig

    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not Path(path).expanduser().is_dir():
        raise ModelError(f"model.path: expected an existing folder, found none at {path!r}")
    remote = "is no local folder and the model hub gave nothing (no network, or no such model)"
    why = f"no usable config.json in {path!r}" if Path(path).is_dir() else f"{path!r} {remote}"
    with told_as(ModelError, f"model.path: {why}"):
        return AutoConfig.from_pretrained(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the loading bar and the report of unused weights: every worker process would print both."""
    from transformers.utils import logging as hub_logging

    logging: Any = hub_logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def random_encoder(config: Any) -> Any:
    """Return an encoder with random weights (on the meta device: with none)."""
    from transformers import AutoModel

    factory: Any = AutoModel
    return factory.from_config(config, **_constructor_options(config))


def _constructor_options(config: Any) -> dict[str, bool]:
    """Leave out the pooler where the architecture allows it: often untrained, and never used here."""
    from transformers import MODEL_MAPPING

    architecture = MODEL_MAPPING[type(config)] if type(config) in MODEL_MAPPING else None
    known = inspect.signature(architecture.__init__).parameters if isinstance(architecture, type) else ()
    return {"add_pooling_layer": False} if "add_pooling_layer" in known else {}
