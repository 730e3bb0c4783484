"""Text that a causal model writes: greedily, in batches, with a key/value cache, until the end of its turn."""

from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from tasks.data.batches import Tokenised
from tasks.models.encoder import evaluating
from tasks.models.tokenizer import HubTokenizer

MAX_NEW_TOKENS = 64


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: HubTokenizer,
    data: Tokenised,
    batch_size: int = 64,
    max_new_tokens: int = MAX_NEW_TOKENS,
    streamer: Any = None,
) -> list[str]:
    """Return the answer that a PEFT model of `tasks.models.build` writes to every prompt of ``data``.

    An answer ends with the mark that ends the responses of ``data``, or after ``max_new_tokens``. A ``streamer`` of
    transformers gets one as it is written, in batches of one.
    """
    assert data.response_start is not None
    decoder = model.base_model.model.encoder
    positions = getattr(decoder.config.get_text_config(), "max_position_embeddings", None)
    ends = sorted({int(ids[-1]) for ids in data.input_ids})
    prompts = [ids[:start] for ids, start in zip(data.input_ids, data.response_start, strict=True)]
    answers = [""] * len(prompts)
    order = np.argsort([len(ids) for ids in prompts], kind="stable")
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            # Padded at the beginning: every row goes on at its end.
            rows = [torch.from_numpy(prompts[i][::-1].astype(np.int64)) for i in chosen]
            ids = pad_sequence(rows, batch_first=True, padding_value=-1).flip(1).to(decoder.device)
            room = min(max_new_tokens, (positions or ids.shape[1] + max_new_tokens) - ids.shape[1])
            if room < 1:
                continue
            written = decoder.generate(
                input_ids=ids.where(ids >= 0, data.pad_token_id),
                attention_mask=(ids >= 0).long(),
                do_sample=False,
                max_new_tokens=room,
                eos_token_id=ends,
                pad_token_id=data.pad_token_id,
                streamer=streamer,
            )[:, ids.shape[1] :]
            texts = tokenizer.tokenizer.batch_decode(written, skip_special_tokens=True)
            for i, text in zip(chosen, texts, strict=True):
                answers[i] = str(text)
    return answers
