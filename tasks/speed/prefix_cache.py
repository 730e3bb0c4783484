"""Hidden states of the frozen lower layers, computed once per example.

When only the upper layers carry LoRA factors, what enters the lowest of them never changes. It is computed in blocks
of a fixed composition (examples of similar length), so that the numbers do not depend on which example was asked for
first, and kept by a key made of everything they depend on: the lower layers' weights, the token ids (and with them
tokenizer and text), the number of layers, number type, threads and the version of PyTorch.
"""

import functools
import hashlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tasks.data.batches import Encoded, Tokenised
from tasks.data.examples import Batch, IndexArray
from tasks.models.files import cache_folder
from tasks.models.lora import layer_index, lora_layers
from tasks.models.transformer import evaluating
from tasks.settings import PrefixSettings
from tasks.speed import cut_decoder, unpadded
from tasks.speed.block_store import BlockStore
from tasks.speed.frozen_linear import FrozenLinear

_BLOCK = 32  # examples computed together


def open_prefix_cache(model: Any, settings: PrefixSettings) -> "tuple[PrefixCache | None, str]":
    """Return a cache for a PEFT model, or None and why there is none ("": nothing is frozen)."""
    base = model.base_model.model
    if not _frozen_layers(model):
        return None, ""
    if getattr(base, "layered", None) is None:
        return None, f"no prefix cache: {base.encoder.config.model_type} models cannot be run layer by layer here"
    if base.settings.dropout > 0:
        return None, "no prefix cache: model.dropout makes the lower layers' states random"
    return PrefixCache(model, BlockStore(settings.memory_mib, cache_folder(settings.folder), settings.disk_mib)), ""


def _frozen_layers(model: Any) -> int:
    return max(0, min((layer_index(name) for name, _ in lora_layers(model)), default=0))


class PrefixCache:
    """The states of one PEFT model's frozen lower layers; the store may be shared with other models."""

    def __init__(self, model: Any, store: BlockStore) -> None:
        self.base = model.base_model.model
        self.layers = _frozen_layers(model)
        self.store = store
        self._parts = cut_decoder if self.base.kind == "causal" else unpadded
        self._lower = self._parts.lower_modules(self.base.encoder, self.layers)
        self._parameters = list(self._lower.parameters())
        self.dtype = self._parameters[0].dtype
        self._fingerprint: tuple[tuple[int, ...], str] | None = None

    def source(self, data: Encoded) -> Encoded:
        """Return the examples with their states in place of their token ids; anything but texts as it is."""
        return CachedStates(**vars(data), cache=self) if isinstance(data, Tokenised) else data

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
        machine = torch.get_num_threads(), torch.__version__, torch.backends.cpu.get_cpu_capability(), library
        way = self._parts.__name__, self.layers, _BLOCK, str(self.dtype), where.device.type
        rest = (self._fingerprint[1], *way, *machine)
        return hashlib.blake2b(repr(rest).encode(), digest_size=16).hexdigest()

    @torch.no_grad()
    def compute(self, data: Tokenised) -> Tensor:
        """Return the states of some examples, their real tokens end to end: (all tokens, hidden)."""
        batch = Tokenised.batch(data, np.arange(len(data)))  # of token ids alone
        inputs = batch.to(self._parameters[0].device).inputs
        inputs.pop("predict", None)
        with evaluating(self.base.encoder):
            hidden: Tensor = self._parts.lower_states(self.base.encoder, self.layers, **inputs)
        return hidden[inputs["attention_mask"].bool()].contiguous().cpu()

    def report(self) -> dict[str, float]:
        """Return hit rate and sizes, for the log and the summary."""
        return {"layers": self.layers, **self.store.report()}

    def describe(self) -> str:
        """Return `report` as one line."""
        found = self.report()
        sizes = f"{found['memory_mib']:.0f} MiB in memory, {found['disk_mib']:.0f} MiB on disk"
        return f"{self.layers} frozen layers, {found['hit_rate']:.0%} of the blocks found, {sizes}"


@dataclass(frozen=True, kw_only=True)
class CachedStates(Tokenised):
    """Examples whose batches carry what enters the lowest adapted layer, too."""

    cache: "PrefixCache"

    @functools.cached_property
    def _blocks(self) -> list[IndexArray]:
        order = np.argsort(self.lengths, kind="stable")
        return [order[start : start + _BLOCK] for start in range(0, len(order), _BLOCK)]

    @functools.cached_property
    def _keys(self) -> dict[tuple[str, int], str]:  # by namespace and block: a step asks for a dozen of them
        return {}

    @functools.cached_property
    def _places(self) -> dict[int, tuple[int, slice]]:
        """The block of every example, and where its tokens lie within."""
        found: dict[int, tuple[int, slice]] = {}
        for number, block in enumerate(self._blocks):
            stops = np.cumsum([len(self.input_ids[i]) for i in block]).tolist()
            tokens = map(slice, [0, *stops[:-1]], stops)
            found |= {int(i): (number, part) for i, part in zip(block, tokens, strict=True)}
        return found

    def batch(self, indices: npt.ArrayLike) -> Batch:
        """Return the examples at ``indices``, padded to the longest; no layer below the boundary is computed."""
        batch, namespace = super().batch(indices), self.cache.namespace()
        places = [self._places[int(i)] for i in np.asarray(indices, dtype=np.int64)]
        blocks = {number: self._states(namespace, number) for number in sorted({number for number, _ in places})}
        states = pad_sequence([blocks[number][tokens] for number, tokens in places], batch_first=True)
        return Batch({**batch.inputs, "states": states, "first_layer": self.cache.layers}, batch.labels)

    def _states(self, namespace: str, number: int) -> Tensor:
        block, dtype = self._blocks[number], self.cache.dtype
        if (key := self._keys.get((namespace, number))) is None:
            digest = hashlib.blake2b(namespace.encode(), digest_size=24)
            for i in block:
                digest.update(len(self.input_ids[i]).to_bytes(4, "little") + self.input_ids[i].tobytes())
                if self.token_types is not None:
                    digest.update(self.token_types[i].tobytes())
            key = self._keys[namespace, number] = digest.hexdigest()
        width = int(self.cache.base.encoder.config.hidden_size)
        found = self.cache.store.get(key, int(self.lengths[block].sum()) * width * dtype.itemsize)
        if found is None:
            states = self.cache.compute(self.subset(block))
            found = self.cache.store.put(key, states.view(torch.uint8).numpy().reshape(-1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns that the array is read-only: it is only copied from
            return torch.from_numpy(found).view(dtype).view(-1, width)
