"""A transformer encoder with masked pooling and a head: the frozen base of classifiers and regressions."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tasks.models.placement import layered
from tasks.models.transformer import later_tokens_change, load_transformer, rounding
from tasks.settings import Kind, ModelSettings


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
        # Some project their last states (OPT-350m).
        hidden = int(getattr(encoder.config, "word_embed_proj_dim", encoder.config.get_text_config().hidden_size))
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
        self, attention_mask: Tensor, states: Tensor | None = None, first_layer: int = 0, **texts: Tensor
    ) -> Tensor:
        """Return logits (batch, outputs) of ``texts``: ``input_ids`` (batch, tokens) and perhaps ``token_type_ids``.

        ``states`` (batch, tokens, hidden), what enters layer ``first_layer``, may stand in their place.
        """
        if self.layered is not None:
            hidden = self.layered(self.encoder, attention_mask, states, first_layer, **texts)
        else:
            hidden = self.encoder(attention_mask=attention_mask, **texts).last_hidden_state
        pooled = pool(hidden, attention_mask, self.pooling)
        logits: Tensor = self.head(pooled.float())  # the head is trained, in float32 whatever the encoder computes in
        return logits


def build_classifier(model: ModelSettings, num_outputs: int, kind: Kind) -> TextClassifier:
    """Build an encoder with its weights and an undrawn head."""
    encoder = load_transformer(model, causal=False)
    base = TextClassifier(encoder, model, num_outputs, kind)
    base.layered = layered(encoder, causal=False)
    if model.pooling == "cls":
        base.causal = later_tokens_change(encoder, "last_hidden_state") <= rounding(encoder)
    return base


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
