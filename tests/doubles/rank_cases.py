"""One process of several, for the tests: runs the cases of a folder and stores what it found.

Each case is a file with a model, groups, a configuration and the updates to make; what comes back are gradients, weights and
metrics after them, whole also where they were sharded.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from doubles.messages import heard
from luspo_cli.config.objective import resolve
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import KnownError, PeerFailed, PeerLost, RunError, UsageError
from luspo_cli.policy import attention, experts
from luspo_cli.policy.loading import freeze_vision
from luspo_cli.policy.packing import split_mini_batches
from luspo_cli.policy.policy import Policy
from luspo_cli.processes.accelerate import make_accelerator, prepare
from luspo_cli.processes.ranks import ALONE, Ranks, joined
from luspo_cli.processes.sharding import shard, whole_weight
from luspo_cli.runs.log import messages_to
from luspo_cli.training.noise_floor import noise_floor
from luspo_cli.training.optimizer import make_optimizer
from luspo_cli.training.update import Updater


def build(case: dict[str, Any], ranks: Ranks) -> tuple[Updater, Any]:
    """An updater and its model, wrapped as a run wraps them."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # accelerate keeps the first mixed precision of a process
    config = TrainRun.model_validate(case["config"])
    sharded = ranks.size > 1 and config.model.sharding == "full"
    low_precision, idle_tower = config.model.compute_dtype == "bfloat16", "images" in case
    accelerator = make_accelerator(low_precision, idle_tower=idle_tower, sharded=sharded)
    if config.model.freeze_vision:
        freeze_vision(case["model"])
    reference = Policy(case["reference"].requires_grad_(False), 1.0) if case.get("reference") is not None else None
    policy = Policy(case["model"], config.rollout.temperature).train()
    for part in (policy, reference) if sharded else ():
        if part is not None:
            if not ranks.is_first:  # the first process alone reads a model
                for weight in part.parameters():
                    weight.data.fill_(torch.nan)
            shard(part, accelerator.device)
    _, optimizer = make_optimizer(policy, config.update)
    prepared, optimizer = prepare(accelerator, policy, optimizer, sharded)
    return Updater(prepared, optimizer, accelerator, config, reference, ranks), policy.model


def found(case: dict[str, Any], ranks: Ranks = ALONE) -> dict[str, Any]:
    """Make the case's updates; the last gradients, the weights, each update's metrics, and the passes of each mini-batch."""
    updater, model = build(case, ranks)
    last = len(case["updates"]) - 1
    metrics = [updater.update(groups, rate, place == last) for place, (groups, rate) in enumerate(case["updates"])]
    rows = updater.rows.gathered(ranks, True, {name: resolve(name) for name in ("grpo", "gspo")}, 16)
    settings = updater.config.update
    batches = split_mini_batches(case["updates"][-1][0], settings.mini_batches, settings.tokens_per_micro_batch)
    return {
        "gradients": {n: whole_weight(w.grad).clone() for n, w in model.named_parameters() if w.requires_grad},
        "weights": {name: whole_weight(weight.detach()).clone() for name, weight in model.named_parameters()},
        "elements": sum(getattr(w, "to_local", lambda w=w: w)().numel() for w in model.parameters()),
        "metrics": [{k: v for k, v in part.items() if not k.startswith("time/")} for part in metrics],
        "rows": rows.updates(),
        "under": rows.under,
        "squared_norms": rows.numbers[-1],
        "class_norms": updater.rows.class_norms,
        "noise_floor": noise_floor(updater.policy, case["updates"][-1][0], settings.tokens_per_micro_batch),
        "pieces": [updater._pieces(batch) for batch in batches],
    }


def exchanges(ranks: Ranks) -> dict[str, Any]:
    """What `Ranks` hands around, and whose failure is whose."""

    def failed_in_a_phase(rank: int, kind: type[KnownError]) -> Any:
        try:
            with ranks.phase():
                if ranks.rank == rank:
                    raise kind(f"process {rank} cannot")
        except KnownError as error:
            return type(error).__name__, str(error), error.exit_code
        return None

    with ranks.phase():
        mine = ranks.rank
    return {
        "shares": [list(ranks.share(n)) for n in (0, 1, 5, 7)],
        "gathered": ranks.gather({"rank": ranks.rank}),
        "any": (ranks.any(ranks.rank == 1), ranks.any(False)),
        "broadcast": ranks.broadcast(f"from {ranks.rank}"),
        "phase": mine,
        "first fails": failed_in_a_phase(0, UsageError),
        "second fails": failed_in_a_phase(1, RunError),
        "after that": ranks.gather(ranks.rank),
        "on machine": ranks.on_machine,
    }


def run_cases(folder: Path, variables: dict[str, str]) -> None:
    """Join as the variables say, and store what each case of the folder gives."""
    os.environ.update(variables)
    attention.register()
    experts.register()
    torch.set_num_threads(1)
    with joined(60) as ranks:
        torch.save(exchanges(ranks), folder / f"exchanges.{ranks.rank}.found")
        for file in sorted(folder.glob("*.case")):
            result = found(torch.load(file, weights_only=False), ranks)
            torch.save(result, folder / f"{file.stem}.{ranks.rank}.found")


def run_session(config: str, path: Path, crash_after: int, variables: dict[str, str]) -> None:
    """A whole training of this process with its others; all end after `crash_after` by a failure of the first one's."""
    from luspo_cli.training.session import run_training

    os.environ.update(variables)

    def on_step(metrics: dict[str, Any]) -> None:
        if metrics["step"] == crash_after:
            raise RunError("stopped by the test")

    said: list[str] = []
    first = variables["RANK"] == "0"
    try:
        with heard(said) if first else messages_to([]):
            run_training(TrainRun.model_validate_json(config), path, "resume", on_step)
    except KnownError as error:
        said.append(f"{type(error).__name__} {error}")
    (path / f"said-{variables['RANK']}.txt").write_text("\n".join(said))


def run_counted_session(config: str, path: Path, variables: dict[str, str]) -> None:
    """A whole training that writes the name of every image file that this process decodes into `decoded-RANK.txt`."""
    from luspo_cli.data.images import ImageFile

    decoded: list[str] = []
    load = ImageFile.load

    def counted(image: ImageFile) -> Any:
        decoded.append(Path(image.name).name)
        return load(image)

    ImageFile.load = counted  # type: ignore[method-assign]  # in a process of its own
    run_session(config, path, 0, variables)
    (path / f"decoded-{variables['RANK']}.txt").write_text("\n".join(decoded))


def lose_one(folder: Path, how: str, wait_s: float, variables: dict[str, str]) -> None:
    """The last process ends, or sleeps, before an exchange; the others store what they make of it and how long that took."""
    os.environ.update(variables)
    begun = time.monotonic()
    try:
        with joined(wait_s) as ranks:
            ranks.gather("all are here")
            begun = time.monotonic()
            if ranks.rank == ranks.size - 1:
                if how == "ends":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(4 * wait_s)
                os._exit(0)
            ranks.gather("one is not")
    except (PeerFailed, PeerLost) as error:
        torch.save((type(error).__name__, str(error), time.monotonic() - begun), folder / f"{variables['RANK']}.found")


def push_sharded(folder: Path, servers: list[str], variables: dict[str, str]) -> None:
    """Share a stored model out over the processes and push it twice to this one's servers; stores what went wrong."""
    from luspo_cli.rollout.sampler import SamplingOptions
    from luspo_cli.rollout.samplers import own_servers
    from luspo_cli.rollout.vllm.server import VllmServerSampler

    os.environ.update(variables)
    attention.register()
    torch.set_num_threads(1)
    said = []
    with joined(60) as ranks:
        policy = Policy(torch.load(folder / "model", weights_only=False), 1.0)
        shard(policy, torch.device("cpu"))
        own = own_servers(servers, ranks.rank, ranks.size)
        sampler = VllmServerSampler(own, None, (1,), "float32", 4, 8, 30.0, SamplingOptions(2, 4))
        for _ in range(2):
            try:
                sampler.load_weights(policy.model)
            except RunError as error:
                said.append(str(error))
            ranks.gather("all have come through")
    torch.save(said, folder / f"{variables['RANK']}.found")


def share_servers(folder: Path, servers: list[str], sharded: bool, killed: int, variables: dict[str, str]) -> None:
    """Twice: push a stored model, the second time with doubled weights, and draw with it; fewer servers than processes.

    Process `killed` ends in the middle of its second push (-1: none). Stores each push's version, and as what the process left.
    """
    from luspo_cli.config.rollout import VllmConfig
    from luspo_cli.records import Prompt
    from luspo_cli.rollout.sampler import SamplingOptions
    from luspo_cli.rollout.samplers import ChosenSampler, SamplerModel, check_sampler, make_sampler
    from luspo_cli.rollout.vllm import server
    from luspo_cli.training.made.build import made_tokenizer

    os.environ.update(variables)
    attention.register()
    torch.set_num_threads(1)
    own, versions, end = int(variables["RANK"]), [], None
    weights = server.checkpoint_weights

    def some(*arguments: Any) -> Any:
        yield from list(weights(*arguments))[:3]
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        with joined(60) as ranks:
            policy = Policy(torch.load(folder / "model", weights_only=False), 1.0)
            if sharded:
                shard(policy, torch.device("cpu"))
            chosen, vllm = ChosenSampler("vllm-server", ""), VllmConfig(servers=tuple(servers), timeout_s=30)
            draws, model = SamplingOptions(2, 4), SamplerModel("", made_tokenizer(26), (1,), "float32")
            check_sampler(chosen, longest=8, draws=draws, vllm=vllm, ranks=ranks)
            sampler: Any = make_sampler(
                chosen, model, None, max_rows=4, longest=8, draws=draws, seed=0, vllm=vllm, ranks=ranks
            )
            for push in range(2):
                if push and own == killed:
                    server.checkpoint_weights = some
                sampler.load_weights(policy.model)
                versions.append(sampler.version)
                sampler.sample_groups([Prompt("p", (10 + own,))], draws)
                with torch.no_grad():
                    for weight in policy.parameters():
                        weight.mul_(2.0)
    except KnownError as error:
        end = type(error).__name__, str(error), error.exit_code
    torch.save((versions, end), folder / f"{own}.found")


def fail_apart(folder: Path, variables: dict[str, str]) -> None:
    """The second process fails alone, the first alone, both alike; stores who prints it each time, None where none failed."""
    os.environ.update(variables)
    found: list[bool | None] = []
    with joined(60) as ranks:
        for failing in ((1,), (0,), (0, 1)):
            prints = ranks.fails_first(f"the engine of {failing} cannot start") if ranks.rank in failing else None
            found.append(prints)
            ranks.gather("all have come through")
    torch.save(found, folder / f"{variables['RANK']}.found")


def fail_outside_a_phase(folder: Path, variables: dict[str, str]) -> None:
    """All processes fail alike in the middle of their work; stores as what each of them leaves the run."""
    os.environ.update(variables)
    try:
        with joined(60) as ranks:
            ranks.gather("all are here")
            raise RunError("the loss was not finite")
    except KnownError as error:
        torch.save((type(error).__name__, str(error), error.exit_code), folder / f"{variables['RANK']}.found")
