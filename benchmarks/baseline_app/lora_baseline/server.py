"""FedAvg over dense adapters, scored on the server's test set after every round."""

import json
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from lora_baseline.task import data_of, get_arrays, get_loader, get_model, set_arrays, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds and write the scores."""
    config = context.run_config
    task = data_of(config)
    rounds: list[dict[str, float]] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = get_model(len(task.label_names), config)
        set_arrays(model, arrays)
        loss, accuracy = test(model, get_loader(task.test, config, batch_size=64))
        rounds.append({"round": server_round, "loss": loss, "accuracy": accuracy, "at": time.time()})
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    nodes = config["num-devices"]
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    model = get_model(len(task.label_names), config)
    strategy.start(grid, get_arrays(model), num_rounds=config["num-rounds"], evaluate_fn=evaluate)
    if config["out"]:
        Path(config["out"]).write_text(json.dumps({"rounds": rounds}))
