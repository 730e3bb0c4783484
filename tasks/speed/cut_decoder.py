"""A decoder in two parts: lower layers that are frozen, whose states can be kept, and the layers above them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tasks.models.transformer import evaluating, rounding, two_texts

OTHER_ARGUMENTS = (TypeError, ValueError, RuntimeError, AttributeError, IndexError)  # of layers that want other ones
_WORTH_A_PASS = 2  # shared tokens: fewer are computed with every text


def lower_modules(decoder: Any, layers: int) -> nn.ModuleList:
    """Return what computes the states of the lowest ``layers`` layers."""
    return nn.ModuleList([decoder.get_input_embeddings(), *decoder.base_model.layers[:layers]])


def lower_states(decoder: Any, layers: int, attention_mask: Tensor, input_ids: Tensor) -> Tensor:
    """Return what leaves the lowest ``layers`` layers, (texts, tokens) -> (texts, tokens, hidden).

    The tokens with which all texts begin, those of the chat template, are computed once.
    """
    found: list[Tensor] = []

    def note(_: nn.Module, inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    core, cache = decoder.base_model, None
    with _only(decoder, slice(None, layers)) as lowest, lowest[-1].register_forward_hook(note):
        if shared := shared_tokens(input_ids, attention_mask):
            cache = core(input_ids=input_ids[:1, :shared], use_cache=True).past_key_values
            cache.batch_repeat_interleave(len(input_ids))
            found[0] = found[0].expand(len(input_ids), -1, -1)
        rest: dict[str, Any] = {"input_ids": input_ids[:, shared:], "attention_mask": attention_mask}
        core(**rest, past_key_values=cache, use_cache=cache is not None)
    return torch.cat(found, dim=1)


def shared_tokens(input_ids: Tensor, attention_mask: Tensor) -> int:
    """Return the number of tokens with which all texts begin, at least one of each left out; 0 if not worth a pass."""
    same = ((input_ids == input_ids[0]) & attention_mask.bool()).all(dim=0)[:-1]  # (tokens - 1,)
    count = int(same.long().cumprod(0).sum())
    return count if count >= _WORTH_A_PASS and len(input_ids) > 1 else 0


def logits_above(decoder: Any, states: Tensor, attention_mask: Tensor, first: int) -> Tensor:
    """Return the logits that the layers from ``first`` on make of the states of those below."""
    with _only(decoder, slice(first, None)):
        logits: Tensor = decoder(inputs_embeds=states, attention_mask=attention_mask, use_cache=False).logits
    return logits


@torch.no_grad()
def can_be_cut(decoder: Any) -> bool:
    """Say whether the two parts, one after the other, are all that this decoder computes: tried on two short texts.

    Architectures scale or shift what enters the first layer, or give every layer a role by its number; a wrong guess
    here would train another model than the one that was asked for.
    """
    config, layers = decoder.config.get_text_config(), getattr(decoder.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) < 2 or getattr(config, "sliding_window", None):
        return False
    roles = [getattr(config, name, None) or () for name in ("layer_types", "no_rope_layers", "mlp_layer_types")]
    if any(len(set(role)) > 1 for role in roles):
        return False
    ids, mask = two_texts(device=decoder.device)
    ids[:, :_WORTH_A_PASS] = ids[:1, :_WORTH_A_PASS]
    with evaluating(decoder), contextlib.suppress(*OTHER_ARGUMENTS):
        whole = decoder(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        boundary = len(layers) // 2
        parts = logits_above(decoder, lower_states(decoder, boundary, mask, ids), mask, boundary).float()
        real = mask.bool()
        return bool((whole[real] - parts[real]).abs().max() <= rounding(decoder) * whole[real].abs().max())
    return False


@contextlib.contextmanager
def _only(decoder: Any, part: slice) -> Iterator[nn.ModuleList]:
    core = decoder.base_model
    layers = core.layers
    core.layers = layers[part]
    try:
        yield core.layers
    finally:
        core.layers = layers
