"""Train on the device's own examples; the base model is loaded in every call, as in Flower's templates."""

import time

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from lora_baseline.task import data_of, get_arrays, get_loader, get_model, partition_of, set_arrays
from lora_baseline.task import train as train_steps

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Load, train, answer with the whole adapter."""
    config = context.run_config
    task = data_of(config)
    number = context.node_config["partition-id"]
    examples = partition_of(task.train, config, number)
    model = get_model(len(task.label_names), config)
    set_arrays(model, msg.content["arrays"])
    began = time.time()
    round_seed = 1000 * config["seed"] + 100_000 * msg.content["config"]["server-round"] + number
    loss = train_steps(model, get_loader(examples, config, shuffle_seed=round_seed), config)
    metrics = {"train_loss": loss, "num-examples": len(examples), "began": began}
    return Message(RecordDict({"arrays": get_arrays(model), "metrics": MetricRecord(metrics)}), reply_to=msg)
