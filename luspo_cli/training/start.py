"""The model that a run starts from: of `model.path`, made on the spot, or of the checkpoint that a fork begins at."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from luspo_cli.config.run import MADE, TrainRun
from luspo_cli.policy.kernels import check_kernels
from luspo_cli.policy.loading import LoadedModel, load_model
from luspo_cli.policy.lora import add_adapters, load_adapter, require_peft
from luspo_cli.policy.model_files import read_adapter_config
from luspo_cli.processes.ranks import ALONE, Ranks
from luspo_cli.processes.sharding import gets_weights
from luspo_cli.records import Problem
from luspo_cli.rollout.in_process.agreement import require_agreement
from luspo_cli.runs.checkpoints import Checkpoint, policy_folder
from luspo_cli.training.made.model import made_model

logger = logging.getLogger(__name__)


def starting_folder(config: TrainRun, problems: Sequence[Problem], parent: Checkpoint | None) -> Path | None:
    """The folder that the run's model is read from where it is not `model.path`; of adapters, where their base is.

    `problems`: those of `data.train` that a made model may be warmed up on; `parent`: what a fork begins at.
    """
    made = config.model.path == MADE
    if parent is None:
        return made_model(config, problems) if made else None
    folder = policy_folder(parent.path)
    if not config.model.lora.rank:
        return folder
    return Path(read_adapter_config(folder)["base_model_name_or_path"]) if made else None


def load_start(config: TrainRun, starting: Path | None, parent: Checkpoint | None, ranks: Ranks = ALONE) -> LoadedModel:
    """The model that the run starts from, with new adapters where they are asked for, or with its parent's.

    UsageError where one of `model.kernels` cannot compute it.
    """
    if config.model.lora.rank:
        require_peft()
    loaded = load_from(config, starting, ranks)
    check_kernels(config.model.kernels, loaded.model, config.rollout.temperature)
    if config.model.lora.rank:
        number = add_adapters(loaded.model, config.model, config.run.seed, str(starting or config.model.path))
        if parent:
            load_adapter(loaded.model, policy_folder(parent.path))
        logger.info(f"training {number:,} weights of adapters; the base model stays as it is")
    return loaded


def load_from(config: TrainRun, folder: Path | None, ranks: Ranks) -> LoadedModel:
    """The model of `folder`, else of `model.path`; without its weights on a process that is handed its share of them later."""
    model = config.model.model_copy(update={"path": str(folder)}) if folder else config.model
    without_weights = gets_weights(config.model, ranks)
    loaded = load_model(model, config.rollout.chat_template, config.data, not without_weights)
    if not without_weights:
        require_agreement(loaded.model, config.model.path)
    return loaded
