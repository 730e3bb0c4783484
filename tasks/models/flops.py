"""Floating-point operations of one training step, for the devices' compute model.

Counting, with one multiply-add as 2 operations and T tokens in E texts of mean length L = T / E:

- a frozen linear layer (m, n): ``2 m n T`` forward and ``2 m n T`` for the gradient of its input; none for its weight;
- a mixture's experts, kept as one tensor: the share of them that a token meets counts like linear layers;
- attention, ``Q K^T`` and ``P V``: ``4 d L T`` forward and twice that backward (both operands need a gradient);
- layers below the lowest adapted one: forward only, no gradient reaches them;
- LoRA factors: ``2 r (m + n) T`` forward, twice that backward (inputs and weights), so ``6 r (m + n) T``;
- the head: 6 operations per parameter and text, counted as frozen because no dropout rate shrinks it.

Softmax, layer norm, activations and embeddings are left out (under 3 % at the sizes used here). The projections of the
lowest adapted layer are counted with an input gradient that autograd skips: a bound from above, safe for a deadline.
"""

from dataclasses import dataclass
from typing import Any

from adapter.state import AdapterSpec
from tasks.models.lora import PREFIX, layer_index, linear_shape


@dataclass(frozen=True)
class FlopCount:
    """Operations of forward and backward, by what they grow with.

    Frozen linear layers grow with the tokens, attention with the tokens and the positions each attends to, the LoRA
    factors with the tokens (times 1 - gamma), the head with the texts.
    """

    frozen_per_token: float
    attention_per_pair: float
    adapter_per_token: float
    head_per_example: float

    def training(self, *, tokens: float, examples: float | None = None) -> tuple[float, float]:
        """Return (frozen, adapter) operations; ``tokens`` count the padding, no ``examples`` no attention and head."""
        frozen = self.frozen_per_token * tokens
        if examples:
            frozen += self.attention_per_pair * tokens * tokens / examples + self.head_per_example * examples
        return frozen, self.adapter_per_token * tokens


def count_flops(base: Any, spec: AdapterSpec) -> FlopCount:
    """Count the operations of a base, on any device, meta included, with the LoRA modules of ``spec``."""
    named = ((name.replace(".base_layer", ""), linear_shape(module)) for name, module in base.encoder.named_modules())
    linear = {name: shape for name, shape in named if shape is not None and ".lora_" not in name}
    num_layers = 1 + max(layer_index(name) for name in linear)
    adapted = (module.name.removeprefix(f"{PREFIX}encoder.") for module in spec.modules)
    lowest = max(0, min(num_layers if name == "lm_head" else layer_index(name) for name in adapted))
    config = base.encoder.config.get_text_config()
    # ALBERT-like encoders run one set of weights several times.
    repeats = max(1, getattr(config, "num_hidden_layers", num_layers) // num_layers)
    weights = {name: shape[0] * shape[1] for name, shape in linear.items() if "pooler" not in name.split(".")}
    weights |= {name: _met(value, config) for name, value in base.encoder.named_parameters() if value.ndim == 3}
    per_token = 0.0
    for name, weight in weights.items():
        above = layer_index(name) >= lowest or name == "lm_head"
        per_token += 2.0 * weight * (2 if above else 1)
    width = 0 if config.model_type == "mlp" else config.hidden_size  # an image has no tokens to attend to
    attention = 4.0 * width * (lowest + 3 * (num_layers - lowest))
    head_module = getattr(base.head, "original_module", base.head)  # PEFT wraps the head and keeps a second copy
    head = 0 if head_module is None else sum(value.numel() for value in head_module.parameters())
    return FlopCount(per_token * repeats, attention * repeats, 6.0 * spec.droppable_parameters * repeats, 6.0 * head)


def _met(experts: Any, config: Any) -> float:
    """Return how many weights of (experts, out, in) a token meets; all, where the configuration does not say."""
    chosen = getattr(config, "num_experts_per_tok", None) or experts.shape[0]
    return float(experts.numel() * min(chosen, experts.shape[0]) / experts.shape[0])
