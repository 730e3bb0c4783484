"""Transformers of either kind, encoders and causal language models: their configuration, their weights, and trials."""

import contextlib
import importlib.util
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tasks.models.files import MINILM_HUB_ID, SMOLLM2_HUB_ID, find_minilm, model_source
from tasks.models.tokenizer import TINY_VOCABULARY
from tasks.settings import ModelError, ModelSettings, some_of, told_as

TINY_SEED = 20240229  # the tiny models stand for published weights, so they do not vary with the run's seed
# Saved adapters name the published model, not a folder of this machine.
_PUBLISHED = {"minilm": MINILM_HUB_ID, "smollm2": SMOLLM2_HUB_ID}
# Every name under which an architecture keeps a dropout probability in its configuration.
_DROPOUT_NAMES = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "dropout_rate", "attention_dropout"),
    *("activation_dropout", "embedding_dropout", "mlp_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"),
)


def transformer_config(model: ModelSettings, *, causal: bool) -> Any:
    """Return the configuration of an encoder or a causal language model, with the dropout of the settings."""
    from transformers import AutoConfig, BertConfig, LlamaConfig

    if causal and model.name not in ("tiny", "hub", "smollm2"):
        wanted = "smollm2, tiny or hub for task=instruct (a causal language model)"
        raise ModelError(f"model.name: expected {wanted}, found {model.name!r}; try model=smollm2")
    config: Any
    if model.name == "tiny":
        size: dict[str, Any] = {"vocab_size": TINY_VOCABULARY, "hidden_size": 32, "intermediate_size": 64}
        size |= {"num_hidden_layers": 2, "num_attention_heads": 2}
        size["max_position_embeddings"] = max(model.max_tokens, 128)
        # Wide initial weights: with the usual 0.02 a random decoder of this size is too flat for LoRA to teach it.
        config = LlamaConfig(**size, num_key_value_heads=1, initializer_range=0.3) if causal else BertConfig(**size)
    elif model.name == "minilm":
        config = AutoConfig.from_pretrained(find_minilm(verify=False))
    else:
        config = _hub_config(model_source(model), causal)
    for name in _DROPOUT_NAMES:
        if hasattr(config, name):
            setattr(config, name, model.dropout)
    limit = getattr(config, "max_position_embeddings", None)
    if limit and model.max_tokens > limit:
        raise ModelError(f"model.max_tokens: expected at most the model's {limit} positions, found {model.max_tokens}")
    return config


def _hub_config(path: str, causal: bool) -> Any:
    """Return the configuration of a hub id or a local folder; refuse an architecture that does not fit the task."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not Path(path).expanduser().is_dir():
        raise ModelError(f"model.path: expected an existing folder, found none at {path!r}")
    remote = "is no local folder and the model hub gave nothing (no network, or no such model)"
    why = f"no usable config.json in {path!r}" if Path(path).is_dir() else f"{path!r} {remote}"
    with told_as(ModelError, f"model.path: {why}"):
        config: Any = AutoConfig.from_pretrained(path)
    wanted = ""
    if causal and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        wanted = "a causal language model for task=instruct"
    elif not causal and config.is_encoder_decoder:
        wanted = "an encoder or a decoder for this task, no encoder-decoder"
    if wanted:
        raise ModelError(f"model.path: expected {wanted}, found architecture {config.model_type!r}")
    return config


def load_transformer(model: ModelSettings, *, causal: bool) -> Any:
    """Load a transformer with its weights, for evaluation; the caller forks the generator that draws a random one."""
    config = transformer_config(model, causal=causal)
    if model.name == "tiny":
        torch.default_generator.manual_seed(TINY_SEED)  # inside the caller's fork_rng
        return random_transformer(config, causal=causal).float().eval()
    source = find_minilm() if model.name == "minilm" else model_source(model)
    factory, options = _factory(config, causal)
    loaded = _pretrained(factory, source, model, config=config, **options)
    loaded.config._name_or_path = _PUBLISHED.get(model.name, loaded.config._name_or_path)
    return loaded.eval()


def random_transformer(config: Any, *, causal: bool) -> Any:
    """Return a transformer with random weights (on the meta device: with none)."""
    factory, options = _factory(config, causal)
    return factory.from_config(config, **options)


def _factory(config: Any, causal: bool) -> tuple[Any, dict[str, bool]]:
    """Return what builds a transformer, and its options: no pooler where the architecture allows it, nobody uses it."""
    from transformers import MODEL_MAPPING, AutoModel, AutoModelForCausalLM

    if causal:
        return AutoModelForCausalLM, {}
    architecture = MODEL_MAPPING[type(config)] if type(config) in MODEL_MAPPING else None
    known = inspect.signature(architecture.__init__).parameters if isinstance(architecture, type) else ()
    return AutoModel, {"add_pooling_layer": False} if "add_pooling_layer" in known else {}


def _pretrained(factory: Any, source: str | Path, model: ModelSettings, **options: Any) -> Any:
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the loading bar and the report of unused weights: every worker process would print both."""
    from transformers.utils import logging as hub_logging

    logging: Any = hub_logging
    with contextlib.ExitStack() as before:
        before.callback(logging.set_verbosity, logging.get_verbosity())
        if logging.is_progress_bar_enabled():
            before.callback(logging.enable_progress_bar)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield


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


@torch.no_grad()
def later_tokens_change(transformer: Any, output: str) -> float:
    """Return how much later tokens change an ``output`` at earlier ones, relative to the largest number.

    Tried on two texts that differ in their last three tokens; a mixture of experts groups other tokens with the first
    three, and rounds otherwise.
    """
    embedding = transformer.get_input_embeddings()
    ids = torch.tensor([[5, 9, 7, 11, 6, 8], [5, 9, 7, 4, 10, 3]], device=embedding.weight.device)
    ids %= embedding.num_embeddings
    found = transformer(input_ids=ids, attention_mask=torch.ones_like(ids))[output][:, :3].float()
    return float((found[0] - found[1]).abs().max() / found.abs().max())


def rounding(transformer: Any) -> float:
    """Return the largest change that is still rounding: larger where the weights are kept in 4 bits."""
    return 2e-2 if getattr(transformer, "is_quantized", False) else 1e-4
