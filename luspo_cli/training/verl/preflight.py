"""Before a run in verl is started: everything that verl's own validation does not see, each in one clear sentence.

What this machine knows is checked here (`faults_of`): data, model, and how the batch divides over the GPUs. What only verl's
interpreter knows is asked of it (`ask_verl`, `ask.py`): its version, the plug-in, the packages, whether the settings compose;
and of a cluster, the plug-in on every node.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from luspo_cli.config.model import ShapeConfig
from luspo_cli.config.peers import ACTOR
from luspo_cli.config.run import TrainRun
from luspo_cli.config.verl_losses import verl_too_old
from luspo_cli.errors import UsageError
from luspo_cli.policy.model_files import config_file, find_model, is_hub_id
from luspo_cli.policy.model_shape import read_shape
from luspo_cli.training.verl.overrides import VerlCommand

DEFAULT_PYTHON = Path(".venv-verl") / "bin" / "python"
"""Where `make peers` puts verl's environment."""
TESTED = "0.9.1"
ASK_TIMEOUT_S = 300.0
NODES_TIMEOUT_S = 600.0
_ROLLOUT_PACKAGES = {"vllm": "vllm", "sglang": "sglang", "trtllm": "tensorrt_llm"}


def find_python(given: Path | None) -> str:
    """verl's interpreter: the given one, that of `make peers`, or this one where verl is beside us; UsageError for none."""
    python = given or (DEFAULT_PYTHON if DEFAULT_PYTHON.is_file() else None)
    if python is None:
        raise UsageError(
            "--engine verl needs verl's interpreter, which has an environment of its own (docs/verl.md): give --verl-python"
            f" PATH; there is no {DEFAULT_PYTHON} here"
        )
    if not python.is_file():
        raise UsageError(f"--verl-python {python} is not a file: give the python of verl's environment")
    return str(python.absolute())


def faults_of(config: TrainRun, problems: int, ray_address: str) -> Iterator[str]:
    """What would fail later, some of it after the model is loaded and a whole batch is sampled; one sentence each."""
    rollout, verl, update = config.rollout, config.verl, config.update
    if not is_hub_id(config.model.path) and not (Path(config.model.path).expanduser() / "config.json").is_file():
        yield find_model(config.model.path) or f"model.path '{config.model.path}' has no config.json"
    if problems < rollout.problems:
        yield (
            f"data.train has {problems} problems and a step takes rollout.problems = {rollout.problems}: verl drops what is"
            " left of an epoch, so no step would be made"
        )
    if verl.gpus % verl.gpus_per_copy:
        shares = "verl.sequence_parallel" if verl.strategy != "megatron" else "the shares of verl.megatron"
        yield f"{verl.gpus} GPUs (verl.nodes times verl.gpus_per_node) do not divide by {shares} ({verl.gpus_per_copy})"
        return
    yield from _indivisible(config)
    yield from _undivided_heads(config)
    longest = config.data.max_prompt_tokens + rollout.max_response_tokens
    share = verl.megatron.context_parallel if verl.strategy == "megatron" else verl.sequence_parallel
    for key, tokens in (
        ("update.tokens_per_micro_batch", update.tokens_per_micro_batch),
        ("verl.logprob_tokens_per_micro_batch", verl.logprob_tokens_per_micro_batch or update.tokens_per_micro_batch),
    ):
        if tokens * share < longest:
            yield (
                f"{key} = {tokens} does not hold the longest row, {longest} tokens of prompt and response: set it to"
                f" {-(-longest // share)} or more"
            )
            break
    if verl.nodes > 1 and not ray_address:
        yield (
            f"verl.nodes = {verl.nodes} needs a Ray cluster that runs: ray start --head on one node, ray start --address on the"
            " others, then give --ray-address auto"
        )


def _indivisible(config: TrainRun) -> Iterator[str]:
    rollout, verl = config.rollout, config.verl
    parallel = verl.gpus // verl.gpus_per_copy
    rows = rollout.problems // config.update.mini_batches * rollout.group_size
    if rows % parallel:
        yield (
            f"a mini-batch of {rows} rollouts (rollout.problems over update.mini_batches, times rollout.group_size) does not"
            f" divide by the {parallel} data-parallel groups of {verl.gpus} GPUs"
        )
    if verl.gpus % verl.rollout_tensor_parallel:
        yield f"{verl.gpus} GPUs do not divide by verl.rollout_tensor_parallel ({verl.rollout_tensor_parallel})"
    if verl.strategy == "megatron":
        experts = verl.megatron.expert_parallel * verl.megatron.expert_tensor_parallel
        if verl.gpus // verl.megatron.pipeline_parallel % experts:
            yield (
                f"{verl.gpus} GPUs over {verl.megatron.pipeline_parallel} pipeline stages do not divide by the experts' shares"
                f" (verl.megatron.expert_parallel times expert_tensor_parallel = {experts})"
            )


def _undivided_heads(config: TrainRun) -> Iterator[str]:
    """Shares of attention heads and of experts that are no whole numbers: found in each worker, when the model is loaded."""
    file = config_file(config.model.path, config.model.revision)
    if file is None and config.model.shape == ShapeConfig():
        return
    shape, verl = read_shape(file) if file else config.model.shape, config.verl
    shares = {"verl.rollout_tensor_parallel": verl.rollout_tensor_parallel}
    if verl.strategy == "megatron":
        shares["verl.megatron.tensor_parallel"] = verl.megatron.tensor_parallel
    else:
        shares["verl.sequence_parallel"] = verl.sequence_parallel
    for key, share in shares.items():
        if verl.gpus % share:
            continue  # said of the GPUs
        if shape.heads % share:
            yield f"{key} = {share} does not divide the {shape.heads} attention heads of {config.model.path}"
        elif shape.key_value_heads % share and share % shape.key_value_heads:
            yield (
                f"{key} = {share} and the {shape.key_value_heads} key-value heads of {config.model.path}: neither divides the"
                " other"
            )
    experts = shape.experts.number
    if verl.strategy == "megatron" and experts % verl.megatron.expert_parallel:
        yield (
            f"verl.megatron.expert_parallel = {verl.megatron.expert_parallel} does not divide the {experts} experts of"
            f" {config.model.path}"
        )


def ask_verl(python: str, config: TrainRun, command: VerlCommand) -> dict[str, Any]:
    """Versions of verl's environment; UsageError for the first thing there that the run needs and is missing or wrong."""
    found = _answer([python, str(Path(__file__).with_name("ask.py"))], json.dumps(command.overrides()), ASK_TIMEOUT_S)
    versions: dict[str, Any] = found["packages"]
    if versions["verl"] is None:
        raise UsageError(f"{python} has no verl: pip install verl=={TESTED} there, or give another --verl-python")
    if verl_too_old(versions["verl"]):
        raise UsageError(
            f"verl {versions['verl']} of {python} is too old: releases before {TESTED} run GSPO where loss_agg_mode says LUSPO,"
            f" and say nothing; pip install verl=={TESTED}"
        )
    needed = [("luspo", "pip install --no-deps luspo"), ("math-verify", "pip install math-verify")]
    needed += [("TransferQueue", "pip install TransferQueue: verl's trainer needs it and pip does not bring it")]
    needed += [(_ROLLOUT_PACKAGES[config.verl.rollout], f"verl.rollout = '{config.verl.rollout}' needs it")]
    if config.verl.strategy == "megatron":
        needed += [(name, "verl.strategy = 'megatron' needs it") for name in ("megatron-core", "mbridge")]
    for package, advice in needed:
        if not versions.get(package):
            raise UsageError(f"{python} has no {package}: {advice}")
    if found["refused"]:
        raise UsageError(f"verl refuses the settings: {found['refused']}")
    mode = command.settings[f"{ACTOR}.policy_loss.loss_mode"]
    if mode not in found["losses"]:
        raise UsageError(
            f"verl knows no loss '{mode}': luspo's plug-in is not loaded by {python}; install the same luspo there, and leave"
            " VERL_USE_EXTERNAL_PLUGINS unset, or let it hold luspo"
        )
    report = _answer([python, "-m", "luspo_cli.verl_plugin.check"], "", ASK_TIMEOUT_S)
    return {"python": report["python"], "packages": versions, "code": report["code"], "file": report["file"]}


def ask_nodes(python: str, ray_address: str) -> list[dict[str, Any]]:
    """The same plug-in on every node of the cluster, by a Ray task on each; UsageError for a node without it."""
    command = [python, "-m", "luspo_cli.verl_plugin.check", "--nodes", "--address", ray_address]
    found: list[dict[str, Any]] = _answer(command, "", NODES_TIMEOUT_S)
    return found


def enough_nodes(config: TrainRun, nodes: Sequence[Any]) -> None:
    """UsageError where the cluster has fewer nodes than the run asks for: verl would wait for them."""
    if len(nodes) < config.verl.nodes:
        raise UsageError(
            f"verl.nodes = {config.verl.nodes}, and the Ray cluster has {len(nodes)}: start ray on the others first"
        )


def _answer(command: Sequence[str], text: str, timeout_s: float) -> Any:
    """The JSON that a program prints in its last line; UsageError with the last line of its errors where it fails."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout_s, check=False)
    except OSError as error:
        raise UsageError(f"{command[0]} cannot be started: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"{command[0]} did not answer within {timeout_s:.0f} s: {' '.join(command[1:])}") from None
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    try:
        if done.returncode == 0 and lines:
            return json.loads(lines[-1])
    except ValueError:
        pass
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    raise UsageError(
        f"{command[0]}: {said[-1] if said else f'no answer as a Python would give it (exit status {done.returncode})'}"
    )
