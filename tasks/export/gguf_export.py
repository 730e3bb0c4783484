"""A trained model as files that llama.cpp runs: the merged model, and the LoRA factors for an unchanged base.

Names of tensors are those of the package ``gguf``. llama.cpp turns the two halves of a head of queries and keys in
another way than transformers: rows (2, half) of Llama's projections stand there as (half, 2).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.export.huggingface import write_card
from tasks.models.files import gguf_source, vocabulary_kind
from tasks.models.lora import PREFIX, lora_layers
from tasks.models.tokenizer import HubTokenizer, TextTokenizer
from tasks.settings import ModelError

Array = npt.NDArray[np.float32]
# How llama.cpp cuts texts into words before it looks for tokens, by the pattern of the tokenizer.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {_WORDS % "{1,3}": "llama-bpe", _WORDS % "": "qwen2"}
_MEND = "use --to merged and llama.cpp's convert_hf_to_gguf.py"
_USE = """```sh
llama-cli -m {folder}/model.gguf
```

Weights are float32; `llama-quantize` makes smaller files of them."""
_ADAPTER = """

`adapter.gguf` holds the LoRA factors alone, for the unchanged base:
`llama-cli -m base.gguf --lora {folder}/adapter.gguf`."""


def save_gguf(
    model: Any, tokenizer: TextTokenizer, folder: Path, *, base_changed: bool = False, facts: Sequence[str] = ()
) -> None:
    """Write ``model.gguf`` and, unless the base was changed as well, ``adapter.gguf``; the model is merged in place."""
    base = model.base_model.model
    layout, (hub, pre) = _Layout(base), _pre_tokenizer(tokenizer, base)
    if not base_changed:
        _write_adapter(model, layout, folder / "adapter.gguf")
    base = model.merge_and_unload()
    writer = layout.writer(folder / "model.gguf", "model")
    layout.add_sizes(writer)
    _add_tokenizer(writer, hub, layout.config.vocab_size, pre)
    for name, value in base.encoder.state_dict().items():
        if not (name == "lm_head.weight" and layout.config.tie_word_embeddings):
            writer.add_tensor(layout.name(name), layout.turned(name, _array(value)))
    _finish(writer)
    use = _USE.format(folder=folder.name) + ("" if base_changed else _ADAPTER.format(folder=folder.name))
    text = f"`model.gguf` is `{base.name_or_path}` with the trained LoRA factors merged into its weights."
    write_card(folder, base, "GGUF model", "gguf", text, use, facts, online=True)


class _Layout:
    def __init__(self, base: Any) -> None:
        import gguf

        self.config: Any = base.encoder.config
        kind = self.config.model_type if base.kind == "causal" else base.kind
        known = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}
        if kind not in known:
            raise ModelError(
                f"--to gguf: expected a language model of kind {' or '.join(known)}, found {kind}; {_MEND}"
            )
        turning = (self.config.rope_parameters or {}).get("rope_type", "default")
        if turning != "default" or getattr(self.config, "use_sliding_window", False):
            wanted = "plain rotary positions without a sliding window"
            raise ModelError(f"--to gguf: expected {wanted}, found {turning}; {_MEND}")
        self.architecture = gguf.MODEL_ARCH_NAMES[known[kind]]
        self._names = gguf.get_tensor_name_map(known[kind], self.config.num_hidden_layers)

    def name(self, key: str) -> str:
        """Return llama.cpp's name of a tensor."""
        found: str | None = self._names.get_name(key, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ModelError(f"--to gguf: llama.cpp's {self.architecture} has no place for {key}")
        return found

    def turned(self, key: str, value: Array) -> Array:
        """Return the rows of a Llama's queries and keys in llama.cpp's order, anything else as it is."""
        heads = {"q_proj": self.config.num_attention_heads, "k_proj": self.config.num_key_value_heads}
        part = key.rsplit(".", 2)[-2]
        if self.architecture != "llama" or part not in heads:
            return value
        halves = value.reshape(heads[part], 2, -1, *value.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(value.shape))

    def writer(self, file: Path, kind: str) -> Any:
        """Open a file of this architecture."""
        import gguf

        writer = gguf.GGUFWriter(file, self.architecture)
        writer.add_type(kind)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        return writer

    def add_sizes(self, writer: Any) -> None:
        """Write what llama.cpp builds the model from."""
        c = self.config
        head_size = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        writer.add_block_count(c.num_hidden_layers)
        writer.add_context_length(c.max_position_embeddings)
        writer.add_embedding_length(c.hidden_size)
        writer.add_feed_forward_length(c.intermediate_size)
        writer.add_head_count(c.num_attention_heads)
        writer.add_head_count_kv(c.num_key_value_heads)
        writer.add_key_length(head_size)
        writer.add_value_length(head_size)
        writer.add_rope_dimension_count(head_size)
        writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
        writer.add_layer_norm_rms_eps(c.rms_norm_eps)
        writer.add_vocab_size(c.vocab_size)


def _write_adapter(model: Any, layout: _Layout, file: Path) -> None:
    """Write lora_A (r, in) and lora_B (out, r) of every module; llama.cpp adds alpha / r of their product."""
    writer, layers = layout.writer(file, "adapter"), list(lora_layers(model))
    first = layers[0][1]
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", first.scaling["default"] * first.r["default"])
    for name, layer in layers:
        key = f"{name.removeprefix(f'{PREFIX}encoder.')}.weight"
        writer.add_tensor(f"{layout.name(key)}.lora_a", _array(layer.lora_A["default"].weight))
        writer.add_tensor(f"{layout.name(key)}.lora_b", layout.turned(key, _array(layer.lora_B["default"].weight)))
    _finish(writer)


def _array(value: Any) -> Array:
    return np.ascontiguousarray(value.detach().float().cpu().numpy())


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _pre_tokenizer(tokenizer: TextTokenizer, base: Any) -> tuple[Any, str]:
    """Return Hugging Face's tokenizer, and llama.cpp's name of how it cuts words: the file's, else by its parts."""
    if not isinstance(tokenizer, HubTokenizer):
        raise ModelError(f"--to gguf: expected a model with a tokenizer of its own, found model={base.settings.name}")
    hub, source = tokenizer.tokenizer, gguf_source(base.settings)
    if source is not None:
        return hub, vocabulary_kind(source)
    whole = json.loads(hub.backend_tokenizer.to_str())
    steps = whole.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    found = "gpt-2" if kinds == ["ByteLevel"] else None
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        found = "smollm"
    elif kinds == ["Split", "ByteLevel"]:
        found = _PATTERNS.get(steps[0]["pattern"].get("Regex"))
    if found is None or whole["model"].get("type") != "BPE":
        wanted = "a tokenizer of byte pairs that cuts words as GPT-2, SmolLM, Llama 3 or Qwen2 do"
        raise ModelError(f"--to gguf: expected {wanted}, found another; {_MEND}")
    return hub, found


def _add_tokenizer(writer: Any, hub: Any, size: int, pre: str) -> None:
    from gguf import TokenType

    tokens, types = [f"[PAD{i}]" for i in range(size)], [TokenType.UNUSED] * size
    for token, i in hub.get_vocab().items():
        tokens[i], types[i] = token, TokenType.NORMAL
    for i, token in hub.added_tokens_decoder.items():
        types[i] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    merges = json.loads(hub.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_add_bos_token(hub(["a"])["input_ids"][0][:1] == [hub.bos_token_id])
    for name in ("bos", "eos", "unk", "pad"):
        if (number := getattr(hub, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    if hub.chat_template:
        writer.add_chat_template(hub.chat_template)
