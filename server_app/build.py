"""From the composed configuration to plain arguments: model, data, fleet, allocator, strategy."""

import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from adapter import AdapterSpec
from adapter.pack import payload_coefficients
from adapter.privacy import PrivacySettings
from conf import convert
from conf.compose import ConfigError
from conf.schema import Config
from optimizer.allocator import ResourceAllocator, check_method_name, make_allocator
from optimizer.objective import SeparableObjective
from optimizer.problem import BoundConstants, Goal, ResourceProblem
from server_app import pilot
from server_app.evaluate import Evaluator, train_sample
from server_app.tracking import check_tracking
from strategy import LoraStrategy, StrategySettings, method
from strategy.aggregation.server_optimizer import ServerSettings
from strategy.round.fleet import Fleet, FloatArray, Work
from strategy.round.roster import Directory
from tasks.data.batches import Encoded, data_notes, tokenise
from tasks.data.glue import GLUE
from tasks.data.load import AnyExamples, TaskData, load_task
from tasks.data.partition import partition_examples
from tasks.models.build import ModelDescription, build_model, describe_model
from tasks.models.placement import keep_states, pick_device
from tasks.models.tokenizer import TextTokenizer, load_tokenizer
from tasks.models.transformer import four_bit_options
from wireless.channel import Cell, fdma_gain, large_scale, ofdma_gain, outage_margin
from wireless.device import draw_devices
from wireless.units import db_to_lin, noise_psd_w_per_hz

_PLACE_STREAM, _FADING_STREAM, _CLASS_STREAM = 0x706C6163, 0x66616465, 0x636C6173
_TAKEN_OVER = "factors aggregation mask fraction devices_per_round clip_factor max_weight robust trim".split()
Channel = Callable[[int], FloatArray]  # of a round: gains by device and, under OFDMA, subcarrier
_LENGTH_SAMPLE = 256  # training texts whose mean length stands for all in the compute model


def load_data(config: Config) -> TaskData:
    """Load the task."""
    return load_task(**convert.task_settings(config))


def build_evaluator(config: Config, task: TaskData) -> Evaluator:
    """Build the server's model and tokenise what it scores."""
    model_of, lora = convert.model_settings(config), convert.lora_settings(config)
    shape: dict[str, Any] = {"num_outputs": task.num_outputs, "kind": task.kind, "seed": config.run.seed}
    model = build_model(model_of, lora, compute=convert.compute_settings(config), **shape)
    prefix, _ = keep_states(model, convert.prefix_settings(config))  # the devices say why, if there is none
    tokenizer = load_tokenizer(model_of)
    sample = task.train.subset(train_sample(len(task.train), config.run.train_eval_size, config.run.seed))
    test, validation, train = (tokenise(tokenizer, part) for part in (task.test, task.validation, sample))
    return Evaluator(model, task, test, validation, train, config.run.eval_batch_size, config.run.eval_threads, prefix)


def describe(config: Config, task: TaskData) -> ModelDescription:
    """Describe the run's model without reading weights."""
    return describe_model(convert.model_settings(config), convert.lora_settings(config), task.num_outputs, task.kind)


def run_facts(config: Config, task: TaskData) -> dict[str, str]:
    """Return what a run is, in words: model, trained parameters, data, devices, cell and method.

    Said when it begins, kept in environment.json, shown at the top of its report.
    """
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


def build_fleet(config: Config, task: TaskData, tokenizer: TextTokenizer, num_examples: tuple[int, ...]) -> Fleet:
    """Place the devices, count their work and payload, and bind the channel to the seed.

    ``task`` and ``tokenizer`` tell how long the texts are, ``num_examples`` how many of them every device has.
    """
    n, seed = config.network, config.run.seed
    classes = {name: asdict(values) for name, values in config.device.classes.items()}
    rng = np.random.default_rng([_CLASS_STREAM, seed])
    device_class, drawn = draw_devices(rng, n.num_devices, classes)
    arrays: dict[str, Any] = dict(drawn)
    flops_per_cycle = arrays.pop("flops_per_cycle")
    if config.budget.energy_j is not None:
        arrays["energy_budget_j"] = np.full(n.num_devices, config.budget.energy_j)
    if config.allocator.cpu_clock != "fixed":
        arrays["min_cpu_hz"], arrays["max_cpu_hz"] = (bound * arrays["cpu_hz"] for bound in config.allocator.cpu_range)
    work = _training_work(config, task, tokenizer)
    flops = work(np.array(num_examples, dtype=np.float64))
    spec, everyone = describe(config, task).spec, np.ones(n.num_devices)
    dtypes = (config.wire.dtype, convert.downlink_dtype(config))
    first = ("A", "B") if config.strategy.factors == "both" else ("B",)  # strategy.phases begins with B
    up, down = (payload_coefficients(spec, dtype, first) for dtype in dtypes)
    subcarrier_hz = n.total_bandwidth_hz / n.num_subcarriers if n.access == "ofdma" and n.num_subcarriers else 0.0
    channel, realised = _channels(config, subcarrier_hz)
    if config.budget.circuit_energy_j > 0:
        arrays["circuit_energy_j"] = config.budget.circuit_energy_j * everyone
    given = config.budget.battery_j
    battery_j = np.array([given.get(name, np.inf) for name in device_class]) if given else None  # inf: on the mains
    template = ResourceProblem(
        access=n.access,
        deadline_s=config.budget.deadline_s,
        max_dropout_rate=config.budget.max_dropout_rate,
        noise_psd_w_per_hz=noise_psd_w_per_hz(n.noise_figure_db),
        bound=BoundConstants(**convert.bound_constants(config)),
        device_ids=tuple(f"device-{k}" for k in range(n.num_devices)),
        num_examples=np.array(num_examples, dtype=np.float64),
        channel_gain=channel(1),
        fixed_cycles=flops.frozen_flops / flops_per_cycle,
        adapter_cycles=flops.adapter_flops / flops_per_cycle,
        fixed_bits=up[0] * everyone,
        droppable_bits=up[1] * everyone,
        downlink_fixed_bits=down[0] * everyone,
        downlink_droppable_bits=down[1] * everyone,
        total_bandwidth_hz=n.total_bandwidth_hz,
        subcarrier_hz=subcarrier_hz,
        goal=_goal(config),
        shared_downlink=n.shared_downlink,
        **arrays,
    )
    return Fleet(template, device_class, channel, work, flops_per_cycle, realised=realised, battery_j=battery_j)


def _goal(config: Config) -> Goal | None:
    a = config.allocator
    if a.objective == "bound":
        return None
    names = ("min_weight",) if a.objective == "time" else ("energy_weight_per_j", "time_weight_per_s")
    return Goal(a.objective, a.max_bound, **{name: getattr(a, name) for name in names})


def _channels(config: Config, subcarrier_hz: float) -> tuple[Channel, Channel | None]:
    """Return the channel of a round that plans know and, where that is an estimate, the one that it turns out to be.

    Both are functions of the round alone, so that a resumed run sees the same fading.
    """
    n, seed = config.network, config.run.seed
    cell = Cell(radius_m=n.cell_radius_m, min_distance_m=n.min_distance_m, carrier_hz=n.carrier_hz)
    mean_gain = large_scale(np.random.default_rng([_PLACE_STREAM, seed]), n.num_devices, cell, shadowing=n.shadowing)
    rician_k, count = float(db_to_lin(n.rician_k_db)) if n.fading == "rician" else 0.0, n.num_subcarriers or 1

    @functools.lru_cache(maxsize=2)
    def channel(server_round: int) -> FloatArray:
        rng = np.random.default_rng([_FADING_STREAM, seed, server_round])
        if n.fading == "none":
            return np.repeat(mean_gain[:, None], count, axis=1) if n.access == "ofdma" else mean_gain.copy()
        if n.access != "ofdma":
            return fdma_gain(rng, mean_gain, rician_k)
        return ofdma_gain(rng, mean_gain, count, subcarrier_hz, delay_spread_s=n.delay_spread_s, rician_k=rician_k)

    if n.csi == "perfect":
        return channel, None
    margin = 1.0 if n.fading == "none" else outage_margin(n.outage_probability, rician_k)
    return lambda server_round: mean_gain * margin, channel


def text_sample(config: Config, examples: AnyExamples, tokenizer: TextTokenizer) -> Encoded:
    """Return the tokenised examples that stand for all in the compute model and in the first lines of a run."""
    return tokenise(tokenizer, examples.subset(train_sample(len(examples), _LENGTH_SAMPLE, config.run.seed)))


def _training_work(config: Config, task: TaskData, tokenizer: TextTokenizer) -> Callable[[FloatArray], Work]:
    """Return the work of a round as a function of the devices' numbers of examples, by the mean length of the texts."""
    t = config.training
    mean_tokens = float(text_sample(config, task.train, tokenizer).lengths.mean())
    flops = describe(config, task).flops

    def work(num_examples: FloatArray) -> Work:
        batch = np.minimum(t.batch_size, num_examples)
        if t.local_steps is not None:
            steps, examples = np.full(num_examples.size, float(t.local_steps)), t.local_steps * batch
        else:
            examples = (t.local_epochs or 1) * num_examples
            steps = np.ceil(examples / batch)
        counted = [flops.training(tokens=count * mean_tokens, examples=count) for count in examples.astype(float)]
        return Work(np.array([frozen for frozen, _ in counted]), np.array([adapter for _, adapter in counted]), steps)

    return work


def build_allocator(config: Config, objective: SeparableObjective | None) -> ResourceAllocator:
    """Return what decides a round's resources; ``objective`` None: the two-term bound."""
    a = config.allocator
    options = {name: getattr(a, name) for name in ("time_limit_s", "gap", "dropout_rate", "verify")}
    return make_allocator(a.name, fallback=tuple(a.fallback), objective=objective, **options)


def build_strategy(config: Config, spec: AdapterSpec, fleet: Fleet, directory: Directory) -> LoraStrategy:
    """Return the federated method."""
    s, p, r = config.strategy, config.privacy, config.lora.r
    _check_method(config)
    allocator = build_allocator(config, pilot.objective(config))
    central = PrivacySettings(p.clip_norm, p.noise_multiplier, p.noise_seed) if p.model == "central" else None
    settings = StrategySettings(
        **{name: getattr(s, name) for name in _TAKEN_OVER},
        wire_dtype=config.wire.dtype,
        wire_noise={name: config.wire.noise[name] for name in config.wire.choices or ()},
        downlink_dtype=convert.downlink_dtype(config),
        seed=config.run.seed,
        round_timeout_s=config.run.round_timeout_s,
        code=convert.device_code(config),
        client_evaluation=config.run.client_evaluation > 0,
        phases=tuple(s.phases),
        server=ServerSettings(s.server_optimizer, s.server_lr, s.server_beta1, s.server_beta2, s.server_tau),
        central=central,
        ranks=tuple(min(s.ranks.get(name, r), r) for name in fleet.device_class) if s.ranks else (),
        scaling=convert.lora_settings(config).scaling,
        rank_exponent=convert.rank_exponent(config),
        realtime=config.radio.mode == "realtime",
        smoothing=config.profile.smoothing,
        num_rounds=config.run.num_rounds,
        priced_battery=config.budget.battery_policy == "prices",
    )
    return method(s.name)(spec=spec, fleet=fleet, directory=directory, allocator=allocator, settings=settings)


def _check_method(config: Config) -> None:
    """Refuse an unknown method or allocator, settings against it, and a base that cannot take up what it adds."""
    s, m = config.strategy, config.model
    for name in (config.allocator.name, *config.allocator.fallback):
        check_method_name(name)
    chosen = method(s.name)
    adds_to_base = chosen.needs_float_base(s.factors, s.aggregation)
    for key, found, needed in (("frozen_weight", m.frozen_weight, True), ("load_in_4bit", m.load_in_4bit, False)):
        if adds_to_base and found != needed:
            must = f"model.{key} must be {str(needed).lower()} with {s.name}, which adds to the frozen weights"
            raise ConfigError(f"{must}, found {str(found).lower()}: use fedit, ffa_lora, rolora or fedlodrop")
    chosen.check_settings(s.factors, s.aggregation)


def preflight(config: Config, report: Callable[[str], None] = lambda line: None) -> TaskData:
    """Fail on unusable data, models, device classes or budgets before any worker is started; return the task.

    ``report`` takes one line for everything that is no reason to stop; the ValueError names the key in one line.
    """
    _check_method(config)
    check_tracking(config.tracking)
    pick_device(convert.compute_settings(config))
    task = load_data(config)
    describe(config, task)
    if config.model.load_in_4bit:
        four_bit_options()
    tokenizer = load_tokenizer(convert.model_settings(config))
    sizes = tuple(part.size for part in partition_examples(task.train, **convert.partition_settings(config)))
    problem = build_fleet(config, task, tokenizer, sizes).template
    if (problem.shortest_s >= problem.deadline_s).all():
        raise ConfigError(
            f"budget.deadline_s={problem.deadline_s:g} can be met by no device: download and training alone take at "
            f"least {problem.shortest_s.min():.3g} s at dropout {problem.max_dropout_rate:g}; raise it above that"
        )
    for note in sampled_notes(config, task, tokenizer):
        report(f"note: {note}")
    return task


def sampled_notes(config: Config, task: TaskData, tokenizer: TextTokenizer) -> list[str]:
    """Return what is wrong with the data, as far as some hundred examples of each set show it."""
    parts = {"training": text_sample(config, task.train, tokenizer), "test": text_sample(config, task.test, tokenizer)}
    return data_notes(task.train, task.test, parts, config.model.max_tokens)
