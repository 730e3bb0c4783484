"""Text that a causal model writes: greedily, in batches, with a key/value cache, until the end of its turn."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tasks.data.batches import Tokenised
from tasks.models.tokenizer import HubTokenizer
from tasks.models.transformer import evaluating

MAX_NEW_TOKENS = 64
_STRETCH = 4  # tokens between two looks at which answers of a batch have ended


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: HubTokenizer,
    data: Tokenised,
    batch_size: int = 256,
    max_new_tokens: int = MAX_NEW_TOKENS,
    streamer: Any = None,
) -> list[str]:
    """Return the answer that a PEFT model of `tasks.models.build` writes to every prompt of ``data``.

    It ends with the mark that ends the responses of ``data``. A ``streamer`` of transformers takes batches of one.
    """
    assert data.response_start is not None
    decoder = model.base_model.model.encoder
    positions = getattr(decoder.config.get_text_config(), "max_position_embeddings", None)
    ends = sorted({int(ids[-1]) for ids in data.input_ids})
    prompts = [ids[:start] for ids, start in zip(data.input_ids, data.response_start, strict=True)]
    answers = [""] * len(prompts)
    order = np.argsort([len(ids) for ids in prompts], kind="stable")
    options = {"do_sample": False, "eos_token_id": ends, "pad_token_id": data.pad_token_id, "streamer": streamer}
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            # Padded at the beginning: every row goes on at its end.
            rows = [torch.from_numpy(prompts[i][::-1].astype(np.int64)) for i in chosen]
            ids = pad_sequence(rows, batch_first=True, padding_value=-1).flip(1).to(decoder.device)
            room = min(max_new_tokens, (positions or ids.shape[1] + max_new_tokens) - ids.shape[1])
            written = _written(decoder, ids.where(ids >= 0, data.pad_token_id), (ids >= 0).long(), room, options)
            for i, tokens in zip(chosen, written, strict=True):
                answers[i] = str(tokenizer.tokenizer.decode(tokens, skip_special_tokens=True))
    return answers


def _written(decoder: Any, ids: Tensor, mask: Tensor, room: int, options: dict[str, Any]) -> list[Tensor]:
    """Return what follows every row of ``ids`` (rows, tokens), ``room`` tokens at most; rows that ended leave."""
    begin, rows, cache = ids.shape[1], torch.arange(len(ids)), None
    written = [ids[0, :0]] * len(ids)
    ends = torch.tensor(options["eos_token_id"], device=ids.device)
    while len(rows) and (left := room - (ids.shape[1] - begin)) > 0:
        stretch = left if options["streamer"] is not None else min(_STRETCH, left)
        given = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "max_new_tokens": stretch}
        found = decoder.generate(**given, return_dict_in_generate=True, **options)
        ids, cache = found.sequences, found.past_key_values
        for row, tokens in zip(rows, ids[:, begin:], strict=True):
            written[row] = tokens
        going = (~torch.isin(ids[:, begin:], ends).any(dim=1)).nonzero()[:, 0]
        mask = torch.cat([mask, mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])], dim=1)[going]
        ids, rows = ids[going], rows[going.cpu()]
        if len(rows):
            cache.batch_select_indices(going)
    return written
