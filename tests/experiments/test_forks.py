"""`luspo fork`: what it asks for, what forks share, what it uses again and refuses, and the numbers that it prints."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from doubles.runs import records, train, weight_bytes
from luspo_cli.analysis.forks import MEASURES, ForkComparison, compare_forks
from luspo_cli.config.fork import ForkConfig
from luspo_cli.config.forking import Variant, fork_configuration, parse_variants
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import UsageError
from luspo_cli.experiments import forks
from luspo_cli.experiments.sweep import Training
from luspo_cli.metrics.seed_statistics import detectable_difference
from luspo_cli.runs.draws import FIRST_STEP, HELD_OUT
from luspo_cli.runs.resume import read_configuration

LOW_ONLY = "low-only:objective.clip_high=1e6"


@pytest.fixture(scope="session")
def parent(small_run: Callable[..., TrainRun], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with the checkpoints of steps 2 and 4."""
    path = tmp_path_factory.mktemp("forks") / "parent"
    train(small_run("run.steps=4"), path)
    return path


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Children train in this process, one after the other; the list names them in the order of their start."""
    started: list[str] = []

    def train_missing(
        trainings: Sequence[Training], command: Callable[[Training], Sequence[str]], *, processes: int, display: Any
    ) -> None:
        for training in trainings:
            if training.state == "finished":
                continue
            words = command(training)
            assert words[-4:] == ["train", "--run", str(training.run), "--resume"]
            started.append(training.name)
            train(read_configuration(training.run), training.run, "resume")

    monkeypatch.setattr(forks, "train_missing", train_missing)
    return started


@pytest.fixture
def fork(luspo: Callable[..., tuple[int, str, str]], parent: Path, made_cache: Path) -> Callable[..., Any]:
    """Return a function that runs `luspo fork` on step 2 of the parent, two steps and two replicates, and gives its JSON."""

    def run(out: Path, *options: str) -> Any:
        status, output, error = luspo(
            "fork",
            str(parent),
            "--step",
            "2",
            "--steps",
            "2",
            "--replicates",
            "2",
            "--out",
            str(out),
            "--json",
            *options,
        )
        assert status == 0, error
        return json.loads(output)

    return run


def test_variants_are_every_objective_under_every_label() -> None:
    assert parse_variants(["gspo", "luspo"], []) == [Variant("gspo"), Variant("luspo")]
    found = parse_variants(["gspo", "luspo"], ["both", f"{LOW_ONLY},update.betas=[0.5, 0.9]"])
    assert [variant.name for variant in found] == ["gspo both", "gspo low-only", "luspo both", "luspo low-only"]
    assert [variant.folder for variant in found][:2] == ["gspo-both", "gspo-low-only"]
    assert found[1].sets == ("objective.clip_high=1e6", "update.betas=[0.5, 0.9]")


@pytest.mark.parametrize("text", ["", "a b", "a:", "../a", ":objective.clip_high=1", "low-only:clip_high=1"])
def test_a_variant_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"wants (LABEL|section\.key=value)"):
        parse_variants(["gspo"], [text])


def test_a_variant_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="--variant a is given twice"):
        parse_variants(["gspo"], ["a", "a:update.learning_rate=1"])


def test_forks_share_step_1_and_differ_afterwards(
    fork: Callable[..., Any], in_this_process: list[str], tmp_path: Path
) -> None:
    keep = ("--set", "run.checkpoint_last=true")
    found = fork(tmp_path / "out", "--objectives", "gspo,luspo", "--preset", "tiny", *keep)
    assert in_this_process == [  # those that draw what is shared go first
        "gspo-replicate0", "gspo-replicate1", "luspo-replicate0", "luspo-replicate1"
    ]  # fmt: skip
    assert found["shared_first_step"] is True
    assert found["seeds"] == [0, 100]
    assert [variant["name"] for variant in found["variants"]] == ["gspo", "luspo"]
    assert found["variants"][0]["clip_high"] == 2.5e-3  # the preset's, not the paper's 4e-4
    for replicate in range(2):
        leader, sibling = (tmp_path / f"out/{name}-replicate{replicate}" for name in ("gspo", "luspo"))
        stored = "rollouts/step-000001.parquet"
        assert (sibling / FIRST_STEP).read_bytes() == (leader / stored).read_bytes()
        assert (sibling / HELD_OUT).read_bytes() == (leader / HELD_OUT).read_bytes()
        before = [json.loads((run / "evals/held-out.jsonl").read_text().splitlines()[0]) for run in (leader, sibling)]
        assert before[0] == before[1]
        assert weight_bytes(leader, 2) != weight_bytes(sibling, 2)  # asked for: by itself a fork keeps no weights
    first = records(tmp_path / "out/gspo-replicate0")[0]["response_length/mean"]
    assert first == records(tmp_path / "out/luspo-replicate0")[0]["response_length/mean"]
    assert first != records(tmp_path / "out/luspo-replicate1")[0]["response_length/mean"]


def test_the_numbers_are_those_of_the_evaluations(
    fork: Callable[..., Any], in_this_process: list[str], tmp_path: Path
) -> None:
    found = fork(tmp_path / "out", "--objectives", "luspo", "--variant", "both", "--variant", LOW_ONLY)
    assert (found["step"], found["steps"]) == (2, 2)
    ends = {
        (variant, replicate): json.loads(
            (tmp_path / f"out/luspo-{variant}-replicate{replicate}/evals/held-out.jsonl").read_text().splitlines()[-1]
        )
        for variant in ("both", "low-only")
        for replicate in range(2)
    }
    for pair in found["differences"]:
        metric = MEASURES[pair["measure"]].metric
        assert (pair["first"], pair["second"]) == ("luspo low-only", "luspo both")
        differences = [ends["low-only", r][metric] - ends["both", r][metric] for r in range(2)]
        assert pair["differences"] == differences
        assert pair["estimate"]["mean"] == pytest.approx(statistics.fmean(differences))
        assert pair["seeds"] == [0, 100]
        spread = statistics.stdev(differences)
        assert pair["detectable"] == pytest.approx(detectable_difference(spread, 2))
        assert pair["verdict"] in ("within noise", "equal", "suggested")  # two pairs never show more
    both = found["variants"][0]
    assert both["final"]["kl"]["mean"] == pytest.approx(
        statistics.fmean(ends["both", r]["evaluation/kl_parent"] for r in range(2))
    )
    assert both["change"]["kl"] == both["final"]["kl"]
    assert both["sample_size"] == min(ends["both", r]["evaluation/reweighted_sample_size"] for r in range(2))
    assert found["variants"][1]["clip_high"] == 1e6


def test_finished_forks_are_used_again_and_unfinished_ones_go_on(
    fork: Callable[..., Any], in_this_process: list[str], tmp_path: Path
) -> None:
    options = ("--objectives", "gspo,luspo")
    before = fork(tmp_path / "out", *options)
    del in_this_process[:]
    assert fork(tmp_path / "out", *options) == before
    assert in_this_process == []
    cut = tmp_path / "out/luspo-replicate1/metrics.jsonl"
    cut.write_text(cut.read_text().splitlines()[0] + "\n")  # as if it had been killed in step 2
    shutil.rmtree(tmp_path / "out/luspo-replicate0")
    assert fork(tmp_path / "out", *options) == before
    assert in_this_process == ["luspo-replicate0", "luspo-replicate1"]


def test_another_configuration_is_refused(
    fork: Callable[..., Any], luspo: Callable[..., Any], parent: Path, in_this_process: list[str], tmp_path: Path
) -> None:
    fork(tmp_path / "out", "--objectives", "luspo")
    asked = ("fork", str(parent), "--step", "4", "--steps", "2", "--replicates", "1", "--out", str(tmp_path / "out"))
    status, _, error = luspo(*asked, "--objectives", "luspo")
    assert status == 2
    assert "luspo-replicate0 was trained with another configuration: fork.checkpoint (" in error
    assert "move the folder away or choose another --out" in error
    asked = ("fork", str(parent), "--step", "2", "--steps", "3", "--replicates", "1", "--out", str(tmp_path / "out"))
    status, _, error = luspo(*asked, "--objectives", "luspo")
    assert status == 2
    assert "evaluation.every, which --steps sets (2 there, 3 now)" in error


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--step", "3"), r"has no checkpoint of step 3: there are those of step 2, 4 \(run\.checkpoint_every"),
        (("--set", "warmup.steps=5"), r"warmup\.steps says how the weights came about"),
        (("--variant", "a:model.shape.width=8"), r"--variant model\.shape\.width=8: .* leave it out"),
        (("--set", "run.seed=1"), r"the fork itself sets this; the replicates set it"),
        (("--set", "objective.name=gspo"), r"the fork itself sets this; give it in --objectives"),
        (("--set", "objective.kl_coefficient=0.1"), "needs a reference, the weights that its run began with"),
        (("--set", "evaluation.temperature=0.5"), r"must be rollout\.temperature \(1\)"),
        (("--set", "data.held_out="), "forks are compared on held-out problems and the run has none"),
        (("--set", "evaluation.every=0"), "forks are compared by their evaluations; leave it out"),
        (("--objectives", "loss.py:a,sub/loss.py:a"), "are both called loss-a in the names of folders"),
        (("--set", "run.rollouts_every=0"), "share their first step through its stored rollouts"),
        (("--set", "update.learning_rat=1"), "unknown key 'update.learning_rat'"),
        (
            ("--set", "update.schedule=linear"),
            r"goes past the end of its parent's learning rate .* step 4\): take fewer",
        ),
        (("--objectives", "gspo,gpso"), "Unknown objective 'gpso'"),
    ],
)
def test_what_cannot_be_forked_is_refused_before_anything_is_written(
    luspo: Callable[..., Any], parent: Path, tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    status, output, error = luspo("fork", str(parent), "--step", "2", "--out", str(tmp_path / "out"), *options)
    assert status == 2
    assert not output
    assert len(error.strip().splitlines()) == 1
    with pytest.raises(UsageError, match=reason):
        raise UsageError(error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("below", ["", "forks"])
def test_forks_do_not_go_into_a_run(luspo: Callable[..., Any], parent: Path, below: str) -> None:
    before = sorted(parent.rglob("*"))
    status, _, error = luspo("fork", str(parent), "--step", "2", "--out", str(parent / below))
    assert status == 2
    assert f"{parent} is the folder of a run; name another one for the forks" in error
    assert sorted(parent.rglob("*")) == before


def test_a_folder_that_is_no_run_is_refused(luspo: Callable[..., Any], tmp_path: Path) -> None:
    status, _, error = luspo("fork", str(tmp_path), "--step", "2")
    assert status == 2
    assert "is no run folder: it has no config.json" in error


def test_a_fork_of_a_fork_goes_on_in_the_first_ones_count(parent: Path) -> None:
    config = read_configuration(parent)
    section = ForkConfig(checkpoint="c", sha256="s", step=7, schedule_steps=60)
    found = fork_configuration(config, section, Variant("gspo"), 3, 5)
    assert (found.fork.step, found.run.seed, found.run.steps, found.evaluation.every) == (7, 300, 5, 5)
    assert (found.objective.name, found.objective.clip_low) == ("gspo", 3e-4)  # without a preset, the paper's
    assert fork_configuration(config, section, Variant("luspo"), 0, 5).objective == config.objective
    other = fork_configuration(config, section, Variant("luspo"), 0, 5, sets=["model.kernels.attention=varlen"])
    assert other.model.kernels.attention == "varlen"  # how weights are computed with, not which they are


def test_the_table(
    luspo: Callable[..., Any], parent: Path, in_this_process: list[str], tmp_path: Path, fork: Callable[..., Any]
) -> None:
    out = tmp_path / "out"
    found = fork(out, "--objectives", "gspo,luspo")
    status, output, _ = luspo(
        "fork", str(parent), "--step", "2", "--steps", "2", "--replicates", "2", "--out", str(out), "--objectives",
        "gspo,luspo",
    )  # fmt: skip
    assert status == 0
    assert "Change in 2 steps from step 2 of parent" in output
    assert output.count("luspo − gspo") == 2
    assert "2 replicates can show" in output or "equal in every pair" in output or "given a normal spread" in output
    assert f"{found['start']['length']['mean']:.2f}" in output
    assert "Step 1 trained on the same rollouts in all variants of a replicate" in output
    comparison = compare_forks(
        parse_variants(["gspo", "luspo"], []),
        {name: [out / f"{name}-replicate{r}" for r in range(2)] for name in ("gspo", "luspo")},
    )
    assert isinstance(comparison, ForkComparison)
    assert comparison.shared_first_step
