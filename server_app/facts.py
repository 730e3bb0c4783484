"""What a run is, in a few lines: said when it begins, kept in environment.json, shown at the top of its report."""

from conf.schema import Config
from server_app.build import describe
from tasks.data.glue import GLUE
from tasks.data.load import TaskData


def run_facts(config: Config, task: TaskData) -> dict[str, str]:
    """Return model, trained parameters, data, devices, cell and method in words."""
    n, r, t, s, kinds = config.network, config.run, config.training, config.strategy, config.device.classes
    model = describe(config, task)
    modules = sorted({module.name.rsplit(".", 1)[-1] for module in model.spec.modules})
    trained = f"{model.spec.droppable_parameters:,} in adapters (r = {config.lora.r} in {', '.join(modules)})"
    sets = f"{len(task.train)} training, {len(task.validation)} validation, {len(task.test)} test examples"
    kind = f"{len(task.label_names)} classes" if task.label_names else task.kind
    asked = s.devices_per_round or (f"{s.fraction:.0%}" if s.fraction < 1 else "all")
    length = f"{t.local_epochs:g} epochs" if t.local_epochs else f"{t.local_steps} steps"
    band = f"{n.num_subcarriers} subcarriers of " if n.access == "ofdma" else ""
    cell = f"{n.access.upper()}, {band}{n.total_bandwidth_hz / 1e3:g} kHz, radius {n.cell_radius_m:g} m"
    return {
        "model": f"{config.model.path or config.model.name}, {model.base_parameters:,} frozen parameters",
        "trained": f"{trained}, {model.spec.head_parameters:,} in the head",
        "data": f"{task.name}{f' ({task.format})' if task.format else ''}: {sets}, {kind}",
        "test set": _origin(config, task.test_held_out),
        "devices": f"{n.num_devices} ({', '.join(kinds)}), data {config.partition.kind}, {asked} asked per round",
        "cell": f"{cell}, deadline {config.budget.deadline_s:g} s, {config.wire.dtype} on the wire",
        "method": f"{s.name} with allocator {config.allocator.name}; {r.num_rounds} rounds of {length}, seed {r.seed}",
    }


def _origin(config: Config, held_out: bool) -> str:
    task = config.task
    if held_out:
        return f"a fifth of {task.train_file or task.dataset or task.name}, held out from training"
    if task.validation_file:
        return f"{task.validation_file}"
    if task.dataset or task.train_file:
        return f"what {task.dataset or task.train_file} sets apart for it"
    return "GLUE's validation set" if task.name in GLUE else task.name if ":" in task.name else "generated"
