"""The frozen base of causal tasks: a decoder that predicts the tokens of the responses."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tasks.models.encoder import TINY_SEED, adjusted, hub_config, later_tokens_change, pretrained, rounding, two_texts
from tasks.models.files import SMOLLM2_HUB_ID
from tasks.models.gguf_import import model_source
from tasks.models.placement import cut
from tasks.models.token_loss import token_loss
from tasks.models.tokenizer import TINY_VOCABULARY
from tasks.settings import Kind, ModelError, ModelSettings, told_as


class CausalModel(nn.Module):
    """A causal language model that computes logits only where they are asked for."""

    kind: Kind = "causal"
    num_outputs = 1
    head: nn.Module | None = None  # the decoder's own head is part of the frozen base

    def __init__(self, decoder: Any, settings: ModelSettings) -> None:
        super().__init__()
        self.name_or_path = getattr(decoder.config, "_name_or_path", "") or f"fedlodrop-{settings.name}-causal"
        self.settings = settings
        self.encoder = decoder  # the name under which every base keeps its transformer
        self.layered: Callable[..., Tensor] | None = None  # from `tasks.models.placement.cut`, by `build_decoder`
        self.plain_head = False  # whether its logits are what its head says, from `_ends_with_head`

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        predict: Tensor | None = None,
        states: Tensor | None = None,
        first_layer: int = 0,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the model's own logits where ``predict`` is true, (batch, tokens) -> (predicted tokens, vocabulary).

        ``states`` (batch, tokens, hidden), what enters layer ``first_layer``, may stand in place of ``input_ids``. With
        ``labels`` (predicted tokens,) their mean loss is returned instead.
        """
        assert predict is not None
        head = self.encoder.get_output_embeddings()
        in_parts = labels is not None and self.plain_head and isinstance(head, nn.Linear)
        kept: list[Tensor] = []

        def chosen(_: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # (1, predicted tokens, hidden): a prompt of 100 tokens costs no 100 rows of the vocabulary.
            rows = states[0][predict]
            if in_parts:  # the loss asks the head itself, for some rows at a time
                kept.append(rows)
                rows = rows[:0]
            return (rows.unsqueeze(0), *states[1:])

        # What scales or caps the logits comes after the head and sees the chosen ones.
        hook = None if head is None else head.register_forward_pre_hook(chosen)
        try:
            logits: Tensor
            if states is not None and self.layered is not None:
                logits = self.layered(self.encoder, states, attention_mask, first_layer)
            else:
                logits = self.encoder(input_ids=input_ids, attention_mask=attention_mask).logits
        finally:
            if hook is not None:
                hook.remove()
        if labels is not None and kept:
            return token_loss(kept[0], labels, head)
        logits = logits[predict] if logits.shape[:2] == predict.shape else logits[0]
        return logits if labels is None else token_loss(logits, labels)


def build_decoder(model: ModelSettings) -> CausalModel:
    """Build a causal model with its weights, a random one from the global generator, which the caller forks."""
    config = decoder_config(model)
    if model.name == "tiny":
        torch.default_generator.manual_seed(TINY_SEED)
        decoder = random_decoder(config).float()
    else:
        from transformers import AutoModelForCausalLM

        decoder = pretrained(AutoModelForCausalLM, model_source(model), model, config=config)
        if model.name == "smollm2":  # saved adapters name the published model, not a folder of this machine
            decoder.config._name_or_path = SMOLLM2_HUB_ID
        _check_causal(decoder.eval())
    base = CausalModel(decoder, model)
    base.layered, base.plain_head = cut(decoder), _ends_with_head(decoder.eval())
    return base


@torch.no_grad()
def _ends_with_head(decoder: Any) -> bool:
    """Say whether nothing scales or caps what a decoder's head, a plain product, says: tried on two short texts."""
    head, said = decoder.get_output_embeddings(), list[Tensor]()
    if type(head) is not nn.Linear or not head.weight.is_floating_point():
        return False
    hook = head.register_forward_hook(lambda _, inputs, output: said.append(output.clone()))
    ids, mask = two_texts(device=decoder.device)
    logits = decoder(input_ids=ids, attention_mask=mask).logits
    hook.remove()
    return torch.equal(logits, said[0])


def _check_causal(decoder: Any) -> None:
    """Refuse a model whose logits depend on later tokens."""
    wanted = "model.path: expected a causal language model that reads token ids alone"
    with told_as(ModelError, f"{wanted}, found {decoder.config.model_type!r}"):  # it wants images or another text, say
        change = later_tokens_change(lambda **inputs: decoder(**inputs).logits, decoder.get_input_embeddings())
    if change > rounding(decoder):
        raise ModelError(
            f"model.path: expected a causal language model for task=instruct, found {decoder.config.model_type!r}, "
            f"in which later tokens change earlier logits by {change:.1%}; use a decoder"
        )


def decoder_config(model: ModelSettings) -> Any:
    """Return the decoder's configuration."""
    if model.name not in ("tiny", "hub", "smollm2"):
        raise ModelError(
            f"model.name: expected smollm2, tiny or hub for task=instruct (a causal language model), found "
            f"{model.name!r}; try model=smollm2, or model=hub model.path=<hub id or folder>"
        )
    if model.name != "tiny":
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        config = hub_config(model_source(model))
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ModelError(
                "model.path: expected a causal language model for task=instruct, found architecture "
                f"{config.model_type!r}"
            )
        return adjusted(config, model)
    from transformers import LlamaConfig

    # Wide initial weights: with the usual 0.02 a random model of this size is too flat for LoRA to teach it anything.
    config = LlamaConfig(
        vocab_size=TINY_VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        max_position_embeddings=max(model.max_tokens, 128),
        initializer_range=0.3,
    )
    return adjusted(config, model)


def random_decoder(config: Any) -> Any:
    """Return a causal model with random weights (on the meta device: with none)."""
    from transformers import AutoModelForCausalLM

    factory: Any = AutoModelForCausalLM
    return factory.from_config(config)
