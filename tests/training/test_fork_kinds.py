"""Forks of every kind of run take their parent's next steps, and a sibling that is handed draws ends as one that drew them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from doubles.runs import SMALL_VISION_RUN, train
from luspo_cli.config.fork import ForkConfig
from luspo_cli.config.forking import Variant, fork_configuration
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.run import TrainRun
from luspo_cli.runs.checkpoints import manifest_sha256
from luspo_cli.runs.draws import FIRST_STEP, HELD_OUT

KEEP = ("run.steps=3", "run.checkpoint_every=1", "run.keep_checkpoints=9", "evaluation.every=1")
KINDS = {
    "lora": ("model.lora.rank=4",),
    # No answer is right after such a warm-up: every round is drawn.
    "rounds": ("rollout.dynamic_sampling=true", "rollout.max_sampling_rounds=3"),
    "pictures": (),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_fork_takes_the_parents_next_steps(
    small_run: Callable[..., TrainRun], made_cache: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "lora":
        pytest.importorskip("peft", reason="adapters need the extra lora: pip install 'luspo[lora]'")
    config = (
        resolve_train(preset="tiny-vl", objective="luspo", sets=[*SMALL_VISION_RUN, *KEEP])
        if kind == "pictures"
        else small_run(*KEEP, *KINDS[kind])
    )
    train(config, tmp_path / "parent")
    checkpoint = tmp_path / "parent/checkpoints/step-000001"
    section = ForkConfig(checkpoint=str(checkpoint), sha256=manifest_sha256(checkpoint), step=1, schedule_steps=3)

    def forked(objective: str) -> TrainRun:
        return fork_configuration(config, section, Variant(objective), 0, 2, sets=["run.checkpoint_last=true"])

    train(forked("luspo"), tmp_path / "fork")
    assert _weights(tmp_path / "fork", 2) == _weights(tmp_path / "parent", 3)

    train(forked("grpo"), tmp_path / "own")
    (tmp_path / "given/start").mkdir(parents=True)
    shutil.copy(tmp_path / "fork/rollouts/step-000001.parquet", tmp_path / "given" / FIRST_STEP)
    shutil.copy(tmp_path / "fork" / HELD_OUT, tmp_path / "given" / HELD_OUT)
    (tmp_path / "given/config.json").write_text('{"run": {}}')
    train(forked("grpo"), tmp_path / "given")
    assert _weights(tmp_path / "given", 2) == _weights(tmp_path / "own", 2) != _weights(tmp_path / "fork", 2)
    evaluations = [(tmp_path / name / "evals/held-out.jsonl").read_bytes() for name in ("given", "own")]
    assert evaluations[0] == evaluations[1]


def _weights(run: Path, step: int) -> bytes:
    found = list((run / f"checkpoints/step-{step:06d}").glob("*/*model.safetensors"))
    assert len(found) == 1
    return found[0].read_bytes()
