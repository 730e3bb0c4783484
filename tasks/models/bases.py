"""The frozen bases: an encoder with a head, a decoder that predicts the tokens of responses, a network for images."""

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tasks.data.mnist import PIXELS
from tasks.models.placement import layered
from tasks.models.token_loss import token_loss
from tasks.models.transformer import TINY_SEED, later_tokens_change, load_transformer, rounding, two_texts
from tasks.settings import Kind, ModelError, ModelSettings, told_as


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
        self.causal = False  # whether a token sees nothing after it; `build_classifier` finds out where it matters
        self.layered: Callable[..., Tensor] | None = None  # from `tasks.speed.unpadded`, by `build_classifier`
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
        self.layered: Callable[..., Tensor] | None = None  # from `tasks.speed.cut_decoder`, by `build_decoder`
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
    base.layered = layered(decoder, causal=True)
    base.plain_head = _ends_with_head(decoder)
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


class _NoWeight(nn.Linear):
    """A weight that stays zero, so that its product need not be computed."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.new_zeros(len(pixels), self.out_features)


class ImageClassifier(nn.Module):
    """W_out ReLU(W0 x), with LoRA on W0: RoLoRA's toy; `tasks.data.mnist` says how it departs from the paper's."""

    kind: Kind = "classification"

    def __init__(self, settings: ModelSettings, num_outputs: int) -> None:
        super().__init__()
        self.name_or_path = "fedlodrop-mlp"
        self.settings = settings
        self.num_outputs = num_outputs
        kind = nn.Linear if settings.frozen_weight else _NoWeight
        hidden = OrderedDict(dense=kind(PIXELS, settings.hidden_size, bias=False), relu=nn.ReLU())
        encoder: Any = nn.ModuleDict({"layer": nn.ModuleList([nn.Sequential(hidden)])})
        # What the choice of modules and the operation count ask a transformer for.
        encoder.config = SimpleNamespace(
            model_type="mlp", hidden_size=settings.hidden_size, num_hidden_layers=1, num_attention_heads=1
        )
        encoder.config.get_text_config = lambda: encoder.config
        self.encoder = encoder
        self.head: nn.Module = nn.Linear(settings.hidden_size, num_outputs)
        self.head_std: float = settings.hidden_size**-0.5  # outputs of order one: this head may stay as it is drawn
        weight = self.encoder["layer"][0].dense.weight
        if not settings.frozen_weight:
            nn.init.zeros_(weight)
        elif not weight.is_meta:
            # Like published weights, W0 does not vary with the run's seed.
            nn.init.kaiming_uniform_(weight, a=5**0.5, generator=torch.Generator().manual_seed(TINY_SEED))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits, ``(batch, 784)`` -> ``(batch, outputs)``."""
        logits: Tensor = self.head(self.encoder["layer"][0](pixels))
        return logits
