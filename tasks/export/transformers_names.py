"""Transformers' own names for an adapter, where one of its models computes the same: other programs load it then."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tasks.models.bases import pool
from tasks.models.lora import PREFIX, head_of, lora_layers
from tasks.models.transformer import two_texts


@dataclass(frozen=True)
class Layout:
    """Where the parts of a base lie in a model of transformers that ``loader`` loads; ``task_type`` is PEFT's.

    ``prefix`` comes before the names of the transformer's modules, with its dot. ``head`` maps our names of the head's
    tensors to theirs, and ``modules_to_save`` are their modules that hold it. ``apart`` says why it lies in a file.
    """

    task_type: str
    loader: str
    prefix: str = ""
    head: Mapping[str, str] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    apart: str = ""

    def rename(self, key: str) -> str:
        """Return transformers' name of a tensor or module, with ``base_model.model.`` where ours has it."""
        start = PREFIX if key.startswith(PREFIX) else ""
        part, _, rest = key.removeprefix(start).partition(".")
        return start + (self.prefix + rest if part == "encoder" else self.head[rest])


def transformers_layout(model: Any) -> Layout | str:
    """Return where a model's parts lie in a model of transformers, or why there is none."""
    base = model.base_model.model
    if base.settings.name in ("tiny", "mlp"):
        return "the base is made by this project"
    layout = Layout("CAUSAL_LM", "AutoModelForCausalLM")
    if base.kind != "causal":
        if (found := _classifier_layout(base, head_of(model))) is not None:
            return found
        kind = base.encoder.config.model_type
        apart = f"no ...ForSequenceClassification for {kind} in transformers computes this pooling and head"
        layout = Layout("FEATURE_EXTRACTION", "AutoModel", apart=apart)
    if _adapts_the_same(model, layout):
        return layout
    return f"PEFT takes some names of {base.encoder.config.model_type}'s modules for those of its experts"


def _adapts_the_same(model: Any, layout: Layout) -> bool:
    """Say whether PEFT finds just our modules in transformers' model; it translates old names of mixtures."""
    import transformers
    from peft import LoraConfig, get_peft_model

    factory = getattr(transformers, layout.loader)
    targets = [layout.rename(name) for name in model.peft_config["default"].target_modules]
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = factory.from_config(model.base_model.model.encoder.config)
        theirs = get_peft_model(plain, LoraConfig(target_modules=targets))
    return {name for name, _ in lora_layers(theirs)} == {layout.rename(name) for name, _ in lora_layers(model)}


def _classifier_layout(base: Any, head: nn.Module) -> Layout | None:
    """Find the head in transformers' classifier, if both compute the same on one (random) encoder."""
    from peft.utils.constants import SEQ_CLS_HEAD_NAMES
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(base.encoder.config)
    config.num_labels = base.num_outputs
    factory: Any = AutoModelForSequenceClassification
    try:
        with torch.random.fork_rng(devices=[]):
            theirs = factory.from_config(config).float().eval()
    except ValueError:  # "Unrecognized configuration class" with a list of hundreds
        return None
    prefix = f"{theirs.base_model_prefix}."
    known = {prefix + key.replace(".base_layer", "") for key in base.encoder.state_dict()}
    own = [(key, part) for key, part in head.named_modules() if isinstance(part, nn.Linear)]
    other = [(k, m) for k, m in theirs.named_modules() if isinstance(m, nn.Linear) and f"{k}.weight" not in known]
    try:
        for (_, ours), (_, part) in zip(own, other, strict=True):
            part.load_state_dict(ours.state_dict())
    except (ValueError, RuntimeError):  # another number of layers, or layers of another shape
        return None
    if not _same(base, head, theirs):
        return None
    names = {
        ".".join(filter(None, (a, tensor))): f"{b}.{tensor}"
        for (a, part), (b, _) in zip(own, other, strict=True)
        for tensor in part.state_dict()
    }
    saved = {key.split(".")[0] if key.split(".")[0] in SEQ_CLS_HEAD_NAMES else key for key, _ in other}
    return Layout("SEQ_CLS", "AutoModelForSequenceClassification", prefix, names, tuple(sorted(saved)))


@torch.no_grad()
def _same(base: Any, head: Any, theirs: Any) -> bool:
    ids, mask = two_texts(theirs.config.pad_token_id or 0)
    ids %= theirs.config.vocab_size
    states = theirs.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    try:
        found = theirs(input_ids=ids, attention_mask=mask).logits
    except ValueError:  # a decoder whose configuration names no padding
        return False
    expected = head.to(states.device)(pool(states, mask, base.pooling))
    return bool(found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-6))
