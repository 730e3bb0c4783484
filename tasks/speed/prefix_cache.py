"""Hidden states of the frozen lower layers, computed once per example.

When only the upper layers carry LoRA factors, what enters the lowest of them never changes: neither from step to step
nor from round to round. It is computed in blocks of a fixed composition (examples of similar length), so that the
numbers do not depend on which example was asked for first, and kept by a key made of everything they depend on: the
lower layers' weights, the token ids (and with them tokenizer and text), the number of layers, number type, threads and
the version of PyTorch.
"""

from __future__ import annotations

import hashlib
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tasks.data.batches import Tokenised
from tasks.data.model_inputs import Batch, Encoded
from tasks.models.encoder import evaluating
from tasks.models.files import cache_folder
from tasks.models.lora import layer_index, lora_layers
from tasks.settings import PrefixSettings
from tasks.speed import cut_decoder, unpadded
from tasks.speed.block_store import BlockStore
from tasks.speed.frozen_linear import FrozenLinear

_BLOCK = 32  # examples computed together


def open_prefix_cache(model: Any, settings: PrefixSettings) -> tuple[PrefixCache | None, str]:
    """Return a cache for a PEFT model, or None and why there is none ("" where nothing is frozen)."""
    base = model.base_model.model
    if not _frozen_layers(model):
        return None, ""
    if getattr(base, "layered", None) is None:
        return None, f"no prefix cache: {base.encoder.config.model_type} models cannot be run layer by layer here"
    if base.settings.dropout > 0:
        return None, "no prefix cache: model.dropout makes the lower layers' states random"
    return PrefixCache(model, BlockStore(settings.memory_mib, cache_folder(settings.folder), settings.disk_mib)), ""


def _frozen_layers(model: Any) -> int:
    """Return how many lower layers of a PEFT model carry no LoRA factors."""
    return max(0, min((layer_index(name) for name, _ in lora_layers(model)), default=0))


class PrefixCache:
    """The states of one PEFT model's frozen lower layers; the store may be shared with other models."""

    def __init__(self, model: Any, store: BlockStore) -> None:
        self.base = model.base_model.model
        self.layers = _frozen_layers(model)
        if getattr(self.base, "layered", None) is None or not self.layers:
            raise ValueError("this model has no frozen lower layers that can be run apart")
        self.store, self.uses = store, 0
        self._parts = cut_decoder if self.base.kind == "causal" else unpadded
        self._lower = self._parts.lower_modules(self.base.encoder, self.layers)
        self._parameters = list(self._lower.parameters())
        self._fingerprint: tuple[tuple[int, ...], str] | None = None

    def source(self, data: Encoded) -> Encoded:
        """Return the examples with their states in place of their token ids; anything but texts as it is."""
        return CachedStates(self, data) if isinstance(data, Tokenised) else data

    def namespace(self) -> str:
        """Return a digest of all that the states depend on, token ids apart; taken again when a weight was changed."""
        version = tuple(parameter._version for parameter in self._parameters)
        if self._fingerprint is None or self._fingerprint[0] != version:
            encoder = self.base.encoder
            digest = hashlib.blake2b(repr([type(encoder).__name__, encoder.config.to_dict()]).encode())
            for parameter in self._parameters:
                raw = parameter.detach().contiguous().view(-1).view(torch.uint8)
                digest.update(raw.cpu().numpy().data)
            self._fingerprint = version, digest.hexdigest()
        where = self._parameters[0]
        # Another library rounds otherwise than PyTorch's.
        library = sum(isinstance(module, FrozenLinear) for module in self._lower.modules())
        # Files of a decoder whose shared first tokens were computed with every text round otherwise, too.
        way = ("shared_tokens",) if self._parts is cut_decoder else ()
        machine = torch.get_num_threads(), torch.__version__, torch.backends.cpu.get_cpu_capability(), library
        rest = (self._fingerprint[1], self.layers, _BLOCK, str(where.dtype), where.device.type, *machine, *way)
        return hashlib.blake2b(repr(rest).encode(), digest_size=16).hexdigest()

    @torch.no_grad()
    def compute(self, data: Tokenised) -> Tensor:
        """Return the states of some examples, their real tokens end to end: (all tokens, hidden)."""
        inputs = data.batch(np.arange(len(data))).to(self._parameters[0].device).inputs
        texts = inputs["input_ids"], inputs["attention_mask"], inputs.get("token_type_ids")
        with evaluating(self.base.encoder):
            hidden: Tensor = self._parts.lower_states(self.base.encoder, *texts, layers=self.layers)
        return hidden[inputs["attention_mask"].bool()].contiguous().cpu()

    def report(self) -> dict[str, float]:
        """Return hit rate and sizes, for the log and the summary."""
        stats = self.store.stats
        return {
            "layers": self.layers,
            "hit_rate": stats.hit_rate,
            "memory_hits": stats.memory_hits,
            "disk_hits": stats.disk_hits,
            "misses": stats.misses,
            "memory_mib": stats.memory_bytes / 2**20,
            "disk_mib": self.store.disk_bytes() / 2**20,
        }

    def describe(self) -> str:
        """Return `report` as one line."""
        found = self.report()
        return (
            f"{self.layers} frozen layers, {found['hit_rate']:.0%} of the blocks found, "
            f"{found['memory_mib']:.0f} MiB in memory, {found['disk_mib']:.0f} MiB on disk"
        )


class CachedStates:
    """Examples whose batches carry what enters the lowest adapted layer; stands in for `Tokenised`."""

    def __init__(self, cache: PrefixCache, data: Tokenised) -> None:
        self.cache, self.data = cache, data
        self.labels, self.lengths, self.response_cut = data.labels, data.lengths, data.response_cut
        order = np.argsort(self.lengths, kind="stable")
        self._blocks = [order[start : start + _BLOCK] for start in range(0, len(order), _BLOCK)]
        self._place = np.empty((len(data), 2), dtype=np.int64)  # block, first token within the block
        for number, block in enumerate(self._blocks):
            self._place[block, 0] = number
            self._place[block, 1] = np.concatenate([[0], np.cumsum(self.lengths[block])[:-1]])
        self._keys: dict[tuple[str, int], str] = {}

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.data)

    def subset(self, indices: npt.ArrayLike) -> CachedStates:
        """Return the examples at ``indices``, in that order."""
        return CachedStates(self.cache, self.data.subset(indices))

    def batch(self, indices: npt.ArrayLike) -> Batch:
        """Return the examples at ``indices``, padded to the longest; no layer below the boundary is computed."""
        chosen = np.asarray(indices, dtype=np.int64)
        batch = self.data.batch(chosen)
        mask = batch.inputs["attention_mask"]
        namespace = self.cache.namespace()
        blocks = {number: self._states(namespace, int(number)) for number in np.unique(self._place[chosen, 0])}
        first = next(iter(blocks.values()))
        states = torch.zeros((*mask.shape, first.shape[1]), dtype=first.dtype)  # (batch, tokens, hidden)
        for row, i in enumerate(chosen):
            number, start = self._place[i]
            states[row, : self.lengths[i]] = blocks[number][start : start + self.lengths[i]]
        inputs = {"attention_mask": mask, "states": states, "first_layer": self.cache.layers}
        if "predict" in batch.inputs:
            inputs["predict"] = batch.inputs["predict"]
        return Batch(inputs, batch.labels)

    def _states(self, namespace: str, number: int) -> Tensor:
        """States of one block, (all its tokens, hidden)."""
        block = self._blocks[number]
        key = self._keys.get((namespace, number))
        if key is None:
            digest = hashlib.blake2b(namespace.encode(), digest_size=24)
            for i in block:
                digest.update(len(self.data.input_ids[i]).to_bytes(4, "little") + self.data.input_ids[i].tobytes())
                if self.data.token_types is not None:
                    digest.update(self.data.token_types[i].tobytes())
            key = self._keys[namespace, number] = digest.hexdigest()
        dtype, width = self.cache._parameters[0].dtype, int(self.cache.base.encoder.config.hidden_size)
        found = self.cache.store.get(key, int(self.lengths[block].sum()) * width * dtype.itemsize)
        if found is None:
            states = self.cache.compute(self.data.subset(block))
            found = self.cache.store.put(key, states.view(torch.uint8).numpy().reshape(-1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns that the array is read-only: it is only copied from
            return torch.from_numpy(found).view(dtype).view(-1, width)
