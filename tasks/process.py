"""What a process has to know before it loads PyTorch, and what its children inherit: both are read once."""

import os

PROCESS_ENVIRONMENT = {
    # What a child process imports never lies in the folder that the user happens to stand in.
    "PYTHONSAFEPATH": "1",
    # Threads that wait for others sleep: on busy cores, spinning triples the CPU time of an evaluation.
    "OMP_WAIT_POLICY": "passive",
    # Kernels prepared for a shape (`tasks.speed.frozen_linear`) are kept for 1024 shapes unless told otherwise, in
    # oneDNN and again in PyTorch. Batches differ in their number of tokens: 330 MiB after a few rounds. Sixteen cover a
    # batch, but with gradient checkpointing, where forward and backward take turns, each drives out the other's.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
    "LRU_CACHE_CAPACITY": "32",
}


def prepare_process() -> None:
    """Set what the user has not set; without effect on a PyTorch that is loaded already."""
    for name, value in PROCESS_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
