"""A Ray cluster of two nodes as the simulation backend: both nodes train, and the records are those of one machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from conf.compose import join_overrides
from server_app.engines.in_process import run_in_process
from tests.support.flower import BIN, SMALL, environment
from tests.support.runs import rounds, without_wall_times

pytestmark = [pytest.mark.flower, pytest.mark.slow]


def _nodes_with_client_actors(address: str) -> int:
    """Count the nodes on which the cluster has had Flower's client actors, the ended ones included."""
    import ray

    ray.init(address=address, log_to_driver=False)
    try:
        actors = ray._private.state.actors().values()
        return len({actor["Address"]["NodeID"] for actor in actors if "ClientAppActor" in str(actor)})
    finally:
        ray.shutdown()


def test_a_federation_runs_on_two_ray_nodes(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    out, local = tmp_path / "out", tmp_path / "local"
    # What `ray start --head` and `ray start --address` do, for two nodes of one machine that end with the test.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        command = [str(BIN / "fedlodrop"), "run", *SMALL, "network.num_devices=4", f"run.dir={out}"]
        address = cluster.address  # gone after the shutdown
        env = environment(tmp_path) | {"RAY_ADDRESS": address}
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
        nodes_that_trained = _nodes_with_client_actors(address)
    finally:
        cluster.shutdown()
    log = (out / "flower.log").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log[-3000:]
    assert nodes_that_trained == 2
    assert run_in_process(join_overrides([*SMALL, "network.num_devices=4", f"run.dir='{local}'"]), 4) == 0
    assert [without_wall_times(r) for r in rounds(out)] == [without_wall_times(r) for r in rounds(local)]
