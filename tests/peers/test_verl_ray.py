"""The plug-in in the workers of a Ray cluster of two nodes, and what `check` says: `make test-verl`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luspo_cli.config.verl_losses import VERL_LOSSES
from luspo_cli.verl_plugin import check as module
from luspo_cli.verl_plugin.check import PLUGIN, check, check_nodes, code_digest

pytestmark = pytest.mark.verl
FILE = str(Path(module.__file__).resolve().with_name("policy_loss.py"))


@pytest.fixture(scope="module", autouse=True)
def version() -> None:
    pytest.importorskip("verl", reason="needs verl in another environment: make peers")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two raylets on this machine, each a node of the cluster."""
    import ray
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 2, "object_store_memory": 80 * 2**20}
    nodes = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    nodes.add_node(**small)
    nodes.wait_for_nodes()
    ray.init(address=nodes.address, logging_level="ERROR", log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def on_a_worker() -> dict[str, Any]:
    """What a worker of verl finds: the registry after `import verl` alone, a loss that it calls, a graded response."""
    import inspect
    from types import SimpleNamespace

    import ray
    import torch
    import verl  # noqa: F401  # what loads the plug-in
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_policy_loss_fn

    from luspo_cli.verl_plugin.reward import compute_score

    info = {"dp_size": 1, "batch_num_tokens": 3, "global_batch_size": 2}
    actor = SimpleNamespace(
        global_batch_info=info, clip_ratio=0.2, clip_ratio_low=2e-3, clip_ratio_high=2.5e-3, tau_pos=1.0, tau_neg=1.05
    )
    zeros, mask = torch.zeros(2, 2), torch.tensor([[True, True], [True, False]])
    loss, _ = get_policy_loss_fn("luspo")(
        old_log_prob=zeros,
        log_prob=zeros,
        advantages=torch.tensor([[1.0, 1.0], [-3.0, 0.0]]),
        response_mask=mask,
        loss_agg_mode="seq-mean-token-sum",
        config=actor,
        rollout_is_weights=None,
    )
    return {
        "node": ray.get_runtime_context().get_node_id(),
        "files": {
            inspect.getfile(function) for name, function in POLICY_LOSS_REGISTRY.items() if name.startswith("luspo")
        },
        "names": {name for name in POLICY_LOSS_REGISTRY if name.startswith("luspo")},
        "loss": float(loss),
        "score": compute_score("p", r"\boxed{\sum_{k=1}^{n}k}", r"\frac{n(n+1)}{2}", timeout_s=60.0),
    }


def test_on_each_node_the_losses_and_the_reward_are_ours(cluster: Any) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    assert len(nodes) == 2
    task = ray.remote(num_cpus=1)(on_a_worker)
    found = ray.get(
        [task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote() for node in nodes]
    )
    assert [one["node"] for one in found] == nodes
    for one in found:
        assert {str(Path(file).resolve()) for file in one["files"]} == {FILE}
        assert one["names"] == set(VERL_LOSSES)
        # Ratio 1 everywhere: minus the advantages times the lengths, over two sequences.
        assert one["loss"] == -(2 * 1.0 - 3.0) / 2
        assert (one["score"]["acc"], one["score"]["reason"]) == (1.0, "symbolic")


def test_check_asks_every_node(cluster: Any) -> None:
    found = check_nodes()
    assert len({report["node_id"] for report in found}) == 2
    for report in found:
        assert (report["verl"], report["file"], report["code"]) == ("0.9.1", FILE, code_digest())
        assert set(report["names"]) == set(VERL_LOSSES)


def test_check_from_a_shell(cluster: Any) -> None:
    found = subprocess.run(
        [sys.executable, "-m", module.__name__, "--nodes", "--address", cluster.address],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert len(json.loads(found.stdout.splitlines()[-1])) == 2


def test_check_here() -> None:
    found = check()
    assert (found["file"], found["verl"]) == (FILE, "0.9.1")
    assert PLUGIN == "luspo_cli.verl_plugin.policy_loss"


@pytest.mark.parametrize("switch", [{"VERL_USE_EXTERNAL_PLUGINS": "none"}, {"VERL_USE_EXTERNAL_PLUGINS": "another"}])
def test_a_plugin_that_verl_has_not_loaded_is_one_sentence(switch: dict[str, str]) -> None:
    found = subprocess.run(
        [sys.executable, "-m", module.__name__],
        env=os.environ | switch,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 1
    sentence = found.stderr.splitlines()[-1]
    assert "verl has not loaded luspo's plug-in" in sentence
    assert "VERL_USE_EXTERNAL_PLUGINS" in sentence
