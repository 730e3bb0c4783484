"""The frozen base of causal tasks: a decoder that predicts the tokens of the responses."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tasks.models.placement import layered
from tasks.models.token_loss import token_loss
from tasks.models.transformer import later_tokens_change, load_transformer, rounding, two_texts
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
        self.layered: Callable[..., Tensor] | None = None  # from `tasks.models.placement.layered`, by `build_decoder`
        self.plain_head = False  # whether its logits are what its head says, from `_ends_with_head`

    def forward(
        self,
        attention_mask: Tensor,
        predict: Tensor,
        states: Tensor | None = None,
        first_layer: int = 0,
        labels: Tensor | None = None,
        **texts: Tensor,
    ) -> Tensor:
        """Return the model's own logits where ``predict`` is true, (batch, tokens) -> (predicted tokens, vocabulary).

        ``states`` (batch, tokens, hidden), what enters layer ``first_layer``, may stand in place of ``input_ids``. With
        ``labels`` (predicted tokens,) their mean loss is returned instead.
        """
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
        hook: Any = contextlib.nullcontext() if head is None else head.register_forward_pre_hook(chosen)
        with hook:
            logits: Tensor
            if states is not None and self.layered is not None:
                logits = self.layered(self.encoder, states, attention_mask, first_layer)
            else:
                logits = self.encoder(attention_mask=attention_mask, **texts).logits
        if labels is not None and kept:
            return token_loss(kept[0], labels, head)
        logits = logits[predict] if logits.shape[:2] == predict.shape else logits[0]
        return logits if labels is None else token_loss(logits, labels)


def build_decoder(model: ModelSettings) -> CausalModel:
    """Build a causal model with its weights, a random one from the global generator, which the caller forks."""
    decoder = load_transformer(model, causal=True)
    wanted = "model.path: expected a causal language model that reads token ids alone"
    with told_as(ModelError, f"{wanted}, found {decoder.config.model_type!r}"):  # it wants images or another text, say
        change = later_tokens_change(decoder, "logits")
    if change > rounding(decoder):
        found = f"{decoder.config.model_type!r}, in which later tokens change earlier logits by {change:.1%}"
        raise ModelError(f"model.path: expected a causal language model for task=instruct, found {found}")
    base = CausalModel(decoder, model)
    base.layered, base.plain_head = layered(decoder, causal=True), _ends_with_head(decoder)
    return base


@torch.no_grad()
def _ends_with_head(decoder: Any) -> bool:
    """Say whether nothing scales or caps what a decoder's head, a plain product, says: tried on two short texts."""
    head, said = decoder.get_output_embeddings(), list[Tensor]()
    if type(head) is not nn.Linear or not head.weight.is_floating_point():
        return False
    ids, mask = two_texts(device=decoder.device)
    with head.register_forward_hook(lambda _, inputs, output: said.append(output.clone())):
        logits = decoder(input_ids=ids, attention_mask=mask).logits
    return torch.equal(logits, said[0])
