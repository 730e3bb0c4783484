"""An encoder layer by layer, without padding: for encoders of BERT's build (embeddings, then a list of equal layers).

A batch of texts of unequal length wastes most of its positions on padding. Here several short texts share one row of
the length of the longest, each seeing only itself, so that the layers' matrix products run over (almost) real tokens
only. The same split lets the lower, frozen layers run apart from the adapted ones (`tasks.speed.prefix_cache`).
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks.models.transformer import evaluating, two_texts
from tasks.speed.cut_decoder import OTHER_ARGUMENTS


@dataclass(frozen=True)
class Packing:
    """Where every token of a padded batch lies in the shared rows.

    ``gather`` (rows * tokens,) is the flat index into the padded batch; free positions repeat its first token.
    ``scatter`` (texts * tokens,) is the flat index into the rows; padding points to the first position. ``segments``
    (rows, tokens) says which text a position belongs to, -1 where it is free.
    """

    gather: Tensor
    scatter: Tensor
    segments: Tensor


def plan_packing(lengths: Sequence[int], device: torch.device | str = "cpu") -> Packing | None:
    """Put texts into few rows of the longest one's length, first fit, longest first; None where each needs its own."""
    longest = max(lengths)
    place: dict[int, tuple[int, int]] = {}  # row and first position of each text
    free: list[int] = []  # of each row
    for text in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row, room in enumerate(free) if room >= lengths[text]), len(free))
        if row == len(free):
            free.append(longest)
        place[text] = row, longest - free[row]
        free[row] -= lengths[text]
    if len(free) == len(lengths):
        return None
    gather = np.zeros((len(free), longest), dtype=np.int64)
    scatter = np.zeros((len(lengths), longest), dtype=np.int64)
    segments = np.full((len(free), longest), -1, dtype=np.int64)
    for text, (row, start) in place.items():
        tokens = np.arange(lengths[text])
        gather[row, start + tokens] = text * longest + tokens
        scatter[text, tokens] = row * longest + start + tokens
        segments[row, start + tokens] = text
    plan = (gather.reshape(-1), scatter.reshape(-1), segments)
    return Packing(*(torch.from_numpy(part).to(device) for part in plan))


def _packing_of(attention_mask: Tensor) -> Packing | None:
    """Plan a batch; None where it is padded at the beginning of its texts."""
    if not bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all()):
        return None
    return plan_packing(attention_mask.sum(dim=1).tolist(), attention_mask.device)


def hidden_states(
    encoder: Any, attention_mask: Tensor, states: Tensor | None = None, first: int = 0, **texts: Tensor
) -> Tensor:
    """Return the last layer's output (texts, tokens, hidden), of token ids or ``states`` entering layer ``first``.

    Where texts share rows, padded positions hold arbitrary finite values.
    """
    packing = _packing_of(attention_mask)
    if states is None and packing is None:
        hidden: Tensor = encoder(attention_mask=attention_mask, **texts).last_hidden_state
        return hidden
    entering = encoder.embeddings(**texts) if states is None else states
    return run_layers(encoder, entering, attention_mask, packing, first)


def lower_modules(encoder: Any, layers: int) -> nn.ModuleList:
    """Return what computes the states of the lowest ``layers`` layers."""
    return nn.ModuleList([encoder.embeddings, *encoder.encoder.layer[:layers]])


def lower_states(encoder: Any, layers: int, attention_mask: Tensor, **texts: Tensor) -> Tensor:
    """Return what leaves the lowest ``layers`` layers, (texts, tokens) -> (texts, tokens, hidden)."""
    return run_layers(encoder, encoder.embeddings(**texts), attention_mask, _packing_of(attention_mask), last=layers)


def run_layers(
    encoder: Any,
    hidden: Tensor,
    attention_mask: Tensor,
    packing: Packing | None = None,
    first: int = 0,
    last: int | None = None,
) -> Tensor:
    """Run layers ``first`` to ``last - 1`` of an encoder on what enters the first of them, (texts, tokens, hidden)."""
    texts, tokens, width = hidden.shape
    if packing is None:
        seen = attention_mask[:, None, None, :].bool()  # (texts, 1, 1, tokens)
        # On an accelerator the question would wait for everything queued before it; there the mask is always used.
        whole = attention_mask.device.type == "cpu" and bool(attention_mask.all())
        mask = None if whole else seen.expand(texts, 1, tokens, tokens)
    else:
        hidden = hidden.reshape(-1, width).index_select(0, packing.gather).view(*packing.segments.shape, width)
        mask = packing.segments[:, None, :, None] == packing.segments[:, None, None, :]  # (rows, 1, tokens, tokens)
    if mask is not None and encoder.config._attn_implementation != "sdpa":  # other ways take numbers to be added
        mask = hidden.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(hidden.dtype).min)
    for layer in encoder.encoder.layer[first:last]:
        out = layer(hidden, mask)
        hidden = out[0] if isinstance(out, tuple) else out
    if packing is None:
        return hidden
    return hidden.reshape(-1, width).index_select(0, packing.scatter).view(texts, tokens, width)


@torch.no_grad()
def runs_layer_by_layer(encoder: Any) -> bool:
    """Say whether embeddings and layers in turn are all that this encoder computes: tried on two short texts.

    Architectures differ in what lies between (projections, relative positions, extra norms); a wrong guess here would
    train another model than the one that was asked for.
    """
    layers, embeddings = getattr(getattr(encoder, "encoder", None), "layer", None), getattr(encoder, "embeddings", None)
    if not isinstance(layers, nn.ModuleList) or not isinstance(embeddings, nn.Module):
        return False
    attention = getattr(encoder.config, "_attn_implementation", None)
    if getattr(encoder.config, "is_decoder", False) or attention not in ("sdpa", "eager"):
        return False
    ids, mask = two_texts(encoder.config.pad_token_id or 0)
    packing, three = plan_packing([3, 6, 3]), [1, 0, 1]
    assert packing is not None
    with evaluating(encoder), contextlib.suppress(*OTHER_ARGUMENTS):
        whole = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        apart = run_layers(encoder, encoder.embeddings(input_ids=ids[three]), mask[three], packing)
        padded = run_layers(encoder, encoder.embeddings(input_ids=ids), mask)
        same = (apart[0, :3] - whole[1, :3], apart[1] - whole[0], apart[2, :3] - whole[1, :3], padded[0] - whole[0])
        return all(float(difference.abs().max()) <= 1e-5 * float(whole.abs().max()) for difference in same)
    return False
