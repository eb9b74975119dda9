"""A small model made and warmed up on the spot, so that RLVR can be seen with no download and no GPU.

Cached by everything it depends on. Two processes that want the same model wait for one another: one makes it, the other reads it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from luspo_cli.config.run import TrainRun
from luspo_cli.data.problems import fingerprint
from luspo_cli.errors import RunError
from luspo_cli.files import lock, replacing_folder, said_in_one_sentence, write_json
from luspo_cli.records import Problem
from luspo_cli.training.made import from_file
from luspo_cli.training.made.build import new_model
from luspo_cli.training.made.task import MadeTask
from luspo_cli.training.made.tasks import TASKS
from luspo_cli.training.made.warmup import missed_gates, warm_up

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """`$LUSPO_CACHE`, else `~/.cache/luspo`."""
    return Path(os.environ.get("LUSPO_CACHE", "~/.cache/luspo")).expanduser()


def made_model(config: TrainRun, problems: Sequence[Problem] = ()) -> Path:
    """The folder of the warmed-up model for this configuration and seed, made now if it is not cached.

    `problems`: those of `data.train` where that is a file, to warm up on.
    Raises RunError where the model misses a gate and `warmup.gate` is on; the model stays cached for inspection.
    """
    made = TASKS.get(config.data.train)
    wanted = {
        "task": made.name if made else from_file.NAME,
        "recipe": made.recipe if made else from_file.RECIPE,
        "shape": config.model.shape.model_dump(exclude=None if config.model.shape.experts.number else {"experts"}),
        # Where there is no balancing loss, the model is the one that was cached before there could be one.
        "warmup": config.warmup.model_dump(
            exclude={"gate", *([] if config.warmup.router_aux_coefficient else ["router_aux_coefficient"])}
        ),
        "profile": config.data.profile,
        "seed": config.run.seed,
        "response_limit": config.rollout.max_response_tokens,
    }
    if made is None:
        wanted["data"] = fingerprint(config.data.train)
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "made" / key
    with said_in_one_sentence(
        f"the made model in {folder.parent}", "or set LUSPO_CACHE to a folder that can be written and has space"
    ):
        folder.parent.mkdir(parents=True, exist_ok=True)
        held = lock(folder.parent / f"{key}.lock", wait=True)
        try:
            if not (folder / "warmup.json").is_file():
                threads = torch.get_num_threads()
                # Sums in another order would make another model, and the cache must not depend on that.
                torch.set_num_threads(1)
                try:
                    _make(config, made or from_file.task_of_file(problems, config.data.train), wanted, folder)
                finally:
                    torch.set_num_threads(threads)
        finally:
            os.close(held)
    report = json.loads((folder / "warmup.json").read_text())["result"]
    missed = missed_gates(report, config)
    if missed and config.warmup.gate:
        raise RunError(
            f"the made model of seed {config.run.seed} is not fit to draw conclusions from: {'; '.join(missed)} after"
            f" {report['steps']:.0f} steps of warm-up, which may take more (warmup.steps); take another run.seed, start"
            " all the same with --set warmup.gate=false, or set model.path to a trained model"
        )
    for gate in missed:
        logger.warning(f"the made model misses a gate: {gate}")
    return folder


def _make(config: TrainRun, task: MadeTask, wanted: dict[str, Any], folder: Path) -> None:
    logger.info(f"warming up a model of {config.model.shape.parameters():,} parameters (seed {config.run.seed}), once")
    loaded = new_model(config.model.shape, task.characters, config.run.seed)
    result = warm_up(loaded, task, config)
    logger.info(
        f"warm-up done after {result['steps']} steps: accuracy {result['accuracy']:.2f}, mean length {result['length_mean']:.1f},"
        f" {result['mixed_fraction']:.0%} of groups mixed"
    )
    with replacing_folder(folder) as partial:
        loaded.model.save_pretrained(partial)
        (loaded.processor or loaded.tokenizer).save_pretrained(partial)
        write_json(partial / "warmup.json", {"made_from": wanted, "result": result})
