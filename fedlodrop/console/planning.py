"""A federation as the server plans it, without weights, devices or Flower: for `explain` and `run --dry-run`.

Channel and participants depend on the seed and the round alone, so any round's resource problem can be built again.
"""

from dataclasses import dataclass

from adapter.announcement import DeviceAnnouncement
from conf.convert import model_settings, partition_settings
from conf.schema import Config
from server_app.build import build_fleet, build_strategy, describe, load_data, sampled_notes, text_sample
from strategy import LoraStrategy
from strategy.round.roster import Directory
from tasks.data.load import TaskData
from tasks.data.partition import partition_examples
from tasks.models.build import ModelDescription, ModelError, TextTokenizer, load_tokenizer
from tasks.models.tokenizer import HashTokenizer


@dataclass(frozen=True)
class PlannedFederation:
    """What can be known of a federation before it starts."""

    config: Config
    task: TaskData
    model: ModelDescription  # layout of the adapter, operations, size of the base
    longest_text: int  # tokens of the longest of the sampled training texts
    strategy: LoraStrategy  # the method, with fleet, directory and allocator
    notes: tuple[str, ...]  # what was assumed because something is not at hand


def plan_federation(config: Config, known_examples: dict[int, int] | None = None) -> PlannedFederation:
    """Build everything that planning needs, from configuration files alone: a hub model needs its config.json only.

    ``known_examples`` are the training examples of devices by index; the partition tells those of the others.
    """
    task, settings, notes = load_data(config), model_settings(config), []
    try:
        tokenizer: TextTokenizer = load_tokenizer(settings)
    except ModelError:
        tokenizer = HashTokenizer(settings.max_tokens)
        notes.append("no tokenizer is at hand: a word is counted as one token, which is somewhat too few")
    sizes = [int(part.size) for part in partition_examples(task.train, **partition_settings(config))]
    for device, count in (known_examples or {}).items():
        sizes[device] = count
    fleet = build_fleet(config, task, tokenizer, tuple(sizes))
    announced = tuple(DeviceAnnouncement(device, size) for device, size in enumerate(sizes))
    directory = Directory(tuple(range(len(sizes))), announced)
    model = describe(config, task)
    strategy = build_strategy(config, model.spec, fleet, directory)
    longest = int(text_sample(config, task.train, tokenizer).lengths.max())
    return PlannedFederation(config, task, model, longest, strategy, (*notes, *sampled_notes(config, task, tokenizer)))
