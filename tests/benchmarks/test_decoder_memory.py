"""What a further worker costs that trains SmolLM2: `pytest -m benchmark tests/benchmarks/test_decoder_memory.py -s`."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import psutil
import pytest

MIB = 2**20


def _work(folder: str, other: str, ready: Any, measured: Any, answers: Any) -> None:
    """Be a worker of `experiment=llm` up to its fourth step; send what is its own after every stage [MiB]."""
    found: dict[str, float] = {}

    def note(stage: str) -> None:
        ready.wait()  # or pages that others have not mapped yet would count as this one's own
        found[stage] = psutil.Process().memory_full_info().uss / MIB

    note("Python")
    from tasks.process import prepare_process

    prepare_process()
    import numpy as np

    from client_app.training import _train
    from client_app.worker import open_device, shared_model

    note("libraries")
    overrides = f"experiment=llm training.prefix_cache_dir={folder} {other}"
    device = open_device({"overrides": overrides}, {"partition-id": 0, "num-partitions": 10})
    note("data and tokenizer")
    shared = shared_model(device)
    note("model")
    data = shared.examples(device.train)
    data.batch(np.arange(len(data)))  # computes the states, or finds them
    note("kept states")
    from adapter import AdapterMask, RoundInstruction
    from client_app.memory import DeviceMemory

    mask = AdapterMask.full(shared.spec)
    instruction = RoundInstruction(1, 0.0, 0, 0.0, 0.0, 0.0, 0.0, "AB", b"")
    import torch
    from flwr.app import RecordDict

    torch.set_num_threads(1)
    _train(shared, device, shared.spec, mask, instruction, DeviceMemory(RecordDict()))
    note("ten steps")
    found["pss"] = psutil.Process().memory_full_info().pss / MIB
    answers.put(found)
    measured.wait()


def _together(count: int, folder: Path, other: str) -> list[dict[str, float]]:
    context = multiprocessing.get_context("spawn")
    ready, measured, answers = context.Barrier(count), context.Barrier(count), context.Queue()
    workers = [context.Process(target=_work, args=(str(folder), other, ready, measured, answers)) for _ in range(count)]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=3600) for _ in workers]
    for worker in workers:
        worker.join()
    return found


@pytest.mark.benchmark
@pytest.mark.parametrize("other", ["", "training.gradient_checkpointing=true"])
def test_a_further_worker_takes_less_than_its_own_copy_of_the_weights_made_it(tmp_path: Path, other: str) -> None:
    _together(1, tmp_path, other)  # writes the states
    one, three = _together(1, tmp_path, other), _together(3, tmp_path, other)
    print({stage: round(value) for stage, value in three[0].items()})
    single, all_three = (sum(worker["pss"] for worker in workers) for workers in (one, three))
    print(f"{other or 'as it is'}: proportional set size: one {single:.0f} MiB, three {all_three:.0f}")
    assert (all_three - single) / 2 < 650  # 400 is the aim, 821 what it was
