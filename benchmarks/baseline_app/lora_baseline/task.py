"""Model, training and scoring of the baseline; data and partition are fedlodrop's, so that accuracies compare."""

from functools import lru_cache
from itertools import islice

import torch
from flwr.app import ArrayRecord
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModel, AutoTokenizer

from tasks.data.load import load_task
from tasks.data.partition import partition_examples
from tasks.models.files import find_minilm


class Classifier(nn.Module):
    """MiniLM, mean pooling, linear head."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(find_minilm(verify=False), add_pooling_layer=False)
        self.head = nn.Linear(self.encoder.config.hidden_size, num_labels)

    def forward(self, input_ids, attention_mask):  # type: ignore[no-untyped-def]
        """(batch, tokens) -> (batch, labels)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).float()
        return self.head((hidden * mask).sum(1) / mask.sum(1))


@lru_cache(maxsize=1)
def load_data(task, train_file, test_file, train_limit, seed):  # type: ignore[no-untyped-def]
    """Load the task once per process, as Flower's templates do with their datasets."""
    return load_task(
        name=task, seed=seed, train_file=train_file or None, validation_file=test_file or None, train_limit=train_limit
    )


def data_of(config):  # type: ignore[no-untyped-def]
    """Return the task that the run configuration names."""
    return load_data(config["task"], config["train-file"], config["test-file"], config["train-limit"], config["seed"])


def get_loader(examples, config, shuffle_seed=None, batch_size=None):  # type: ignore[no-untyped-def]
    """Tokenise to a fixed length and return batches."""
    tokenizer = AutoTokenizer.from_pretrained(find_minilm(verify=False))
    fixed = {"padding": "max_length", "truncation": True, "max_length": config["max-length"]}
    encoded = tokenizer(list(examples.texts), return_tensors="pt", **fixed)
    dataset = TensorDataset(encoded["input_ids"], encoded["attention_mask"], torch.tensor(examples.labels))
    training, generator = shuffle_seed is not None, torch.Generator().manual_seed(shuffle_seed or 0)
    options = {"shuffle": training, "generator": generator, "drop_last": training}
    return DataLoader(dataset, batch_size or config["batch-size"], **options)


def partition_of(examples, config, partition_id):  # type: ignore[no-untyped-def]
    """Return one device's training examples."""
    iid = {"kind": "iid", "alpha": 1.0, "min_size": 1, "seed": config["seed"]}
    return examples.subset(partition_examples(examples, num_devices=config["num-devices"], **iid)[partition_id])


def get_model(num_labels, config):  # type: ignore[no-untyped-def]
    """Load the base model and attach LoRA to query and value."""
    torch.manual_seed(config["seed"])
    where = {"target_modules": ["query", "value"], "modules_to_save": ["head"]}
    lora = LoraConfig(r=config["lora-r"], lora_alpha=config["lora-alpha"], **where)
    return get_peft_model(Classifier(num_labels), lora)


def get_arrays(model):  # type: ignore[no-untyped-def]
    """Return adapter and head, dense, float32."""
    return ArrayRecord({name: value.cpu() for name, value in get_peft_model_state_dict(model).items()})


def set_arrays(model, arrays):  # type: ignore[no-untyped-def]
    """Load adapter and head."""
    set_peft_model_state_dict(model, arrays.to_torch_state_dict())


def train(model, loader, config):  # type: ignore[no-untyped-def]
    """Run the local steps of a round; return the mean loss."""
    head = [value for name, value in model.named_parameters() if value.requires_grad and "head" in name]
    lora = [value for name, value in model.named_parameters() if value.requires_grad and "head" not in name]
    groups = [{"params": lora, "lr": config["lr"]}, {"params": head, "lr": config["head-lr"]}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    model.train()
    model.base_model.model.encoder.eval()  # no dropout inside the encoder, as in fedlodrop's default
    losses = []
    for input_ids, mask, labels in islice(loader, config["local-steps"]):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(input_ids, mask), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(lora + head, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def test(model, loader):  # type: ignore[no-untyped-def]
    """Return mean loss and accuracy."""
    model.eval()
    loss = correct = count = 0
    for input_ids, mask, labels in loader:
        logits = model(input_ids, mask)
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(1) == labels).sum().item()
        count += len(labels)
    return loss / count, correct / count
