"""Training with an objective of one's own: the documentation's example, what is recorded, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from doubles.pages import commands, write_files
from doubles.runs import SMALL_RUN, records, train
from luspo_cli.config import own_objective
from luspo_cli.config.fork import ForkConfig
from luspo_cli.config.forking import Variant, fork_configuration
from luspo_cli.config.lab import resolve_lab
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import RunError, UsageError
from luspo_cli.experiments.lab.experiment import run_experiment
from luspo_cli.experiments.lab.switches import (
    UNREACHED,
    attribute,
    without_length_division,
    without_low_side,
    without_std,
)
from luspo_cli.experiments.sweep import plan_trainings
from luspo_cli.training import objective_check
from luspo_cli.training.session import run_training
from luspo_cli.training.verl.overrides import VerlFiles, verl_command

PAGE = "own-objective.md"
NAME = "loss.py:luspo_again"
SMALL = [part for setting in SMALL_RUN for part in ("--set", setting)]
SAME_CLIP = ("objective.clip_low=2e-3", "objective.clip_high=2.5e-3")
BROKEN = """
from luspo_cli.objectives import OwnObjective
calls = []
def fails_later(batch):
    calls.append(1)
    return 1 / batch.sequences if len(calls) < 500 else missing
late = OwnObjective("gspo", aggregation=fails_later)
nan = OwnObjective("gspo", surrogate=lambda ratio, batch: ratio * float("nan"))
"""

CENTRED = """
from luspo_cli.objectives import OwnObjective
centred = OwnObjective("gspo", advantage=lambda rewards: [reward - sum(rewards) / len(rewards) for reward in rewards])
"""


def forget() -> None:
    """Let files be read again, as another process would."""
    own_objective._load.cache_clear()
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in with the documentation's loss.py."""
    monkeypatch.chdir(tmp_path)
    forget()
    assert write_files(PAGE, tmp_path) == ["loss.py"]
    yield tmp_path
    forget()


def numbers(run: Path) -> list[dict[str, object]]:
    return [{key: value for key, value in record.items() if "time" not in key} for record in records(run)]


def test_the_example_of_the_documentation_is_luspo(
    folder: Path, small_run: Callable[..., TrainRun], luspo: Callable[..., tuple[int, str, str]]
) -> None:
    dry = next(words for words in commands(PAGE) if "--dry-run" in words)
    code, out, err = luspo(*dry, *SMALL)
    assert (code, err) == (0, "")
    assert "L = −Σ_i Σ_t w_it min(s_i A_i, clip(s_i, 1−0.002, 1+0.0025) A_i)" in out
    train(small_run(*SAME_CLIP, "run.steps=3", objective=NAME), folder / "own")
    train(small_run(*SAME_CLIP, "run.steps=3"), folder / "luspo")
    assert numbers(folder / "own") == numbers(folder / "luspo")
    assert any(record["update/grad_norm"] for record in records(folder / "own"))
    weights = [next((folder / name).rglob("checkpoints/step-000003/**/*.safetensors")) for name in ("own", "luspo")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_run_does_not_resume_with_another_file_and_one_that_is_gone(
    folder: Path, small_run: Callable[..., TrainRun]
) -> None:
    config = small_run("run.steps=4", objective=NAME)
    with pytest.raises(ZeroDivisionError):
        train(config, folder / "run", crash_after=2)
    (function,) = json.loads((folder / "run/provenance.json").read_text())["functions"].items()
    assert function[0] == NAME
    assert (function[1]["key"], function[1]["sha256"]) == ("objective.name", config.objective.sha256)
    text = (folder / "loss.py").read_text()
    (folder / "loss.py").write_text(text + "# edited\n")
    forget()
    with pytest.raises(
        UsageError, match=rf"changed since the run began: the file of objective\.name = '{NAME}' \(sha256 "
    ):
        train(config, folder / "run", "resume")
    (folder / "loss.py").unlink()
    forget()
    with pytest.raises(UsageError, match=r"objective\.name 'loss\.py' is relative|there is no file loss\.py"):
        train(config, folder / "run", "resume")
    (folder / "loss.py").write_text(text + "# edited\n")
    run_training(config, folder / "run", "resume", lambda _: None, allow_changed=True)
    assert len(records(folder / "run")) == 4


def test_another_version_of_the_file_is_another_configuration(folder: Path, small_run: Callable[..., TrainRun]) -> None:
    def planned() -> list[str]:
        resolve = lambda objective, _: small_run(objective=objective).model_dump(mode="json")  # noqa: E731
        return [one.run.name for one in plan_trainings([NAME], 1, folder, resolve)]

    assert planned() == ["loss-luspo_again-seed0"]
    (folder / "loss-luspo_again-seed0").mkdir()
    stored = small_run(objective=NAME).model_dump(mode="json")
    (folder / "loss-luspo_again-seed0/config.json").write_text(json.dumps(stored))
    assert planned() == ["loss-luspo_again-seed0"]
    (folder / "loss.py").write_text((folder / "loss.py").read_text() + "# edited\n")
    forget()
    with pytest.raises(UsageError, match=r"was trained with another configuration: objective\.sha256 "):
        planned()


@pytest.mark.parametrize("other", ["sub/loss.py:luspo_again", "./loss.py:luspo_again"])
def test_two_objectives_never_share_a_folder(
    folder: Path, luspo: Callable[..., tuple[int, str, str]], other: str
) -> None:
    code, _, err = luspo("compare", "--preset", "tiny", "--objectives", f"{NAME},{other}", "--seeds", "1")
    assert code == 2
    assert f"{NAME} and {other} are both called loss-luspo_again in the names of folders" in " ".join(err.split())
    assert not (folder / "runs").exists()


def test_what_could_not_train_leaves_no_folder(folder: Path, small_run: Callable[..., TrainRun]) -> None:
    (folder / "broken.py").write_text(BROKEN)
    with pytest.raises(UsageError, match=r"objective broken\.py:nan cannot train: value or gradient is not finite"):
        train(small_run(objective="broken.py:nan"), folder / "run")
    assert not (folder / "run").exists()


def test_a_function_that_fails_later_ends_the_run_with_its_line(
    folder: Path, small_run: Callable[..., TrainRun]
) -> None:
    (folder / "broken.py").write_text(BROKEN.replace("500", "400"))
    config = small_run("run.steps=200", "evaluation.every=0", objective="broken.py:late")
    with pytest.raises(
        RunError, match=r"broken\.py:late: its aggregation failed: NameError: .* \(broken\.py, line 6\)"
    ):
        train(config, folder / "run")
    assert records(folder / "run")


def test_a_loss_that_becomes_nan_is_the_first_suspect(
    folder: Path, small_run: Callable[..., TrainRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luspo_cli.training.preflight.check_update", lambda *_: None)  # would refuse it at the start
    (folder / "broken.py").write_text(BROKEN)
    with pytest.raises(
        RunError, match=r"moved a weight; the first suspect is your objective broken\.py:nan; otherwise start"
    ):
        train(small_run(objective="broken.py:nan"), folder / "run")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.py:mine", r"there is no file nowhere.py"),
        ("loss.py:token_sum", "loss.py:token_sum is a function and no OwnObjective"),
        ("lusop", "unknown objective 'lusop'"),
    ],
)
@pytest.mark.parametrize("command", ["train", "compare", "lab"])
def test_a_wrong_name_is_one_sentence(
    folder: Path, luspo: Callable[..., tuple[int, str, str]], command: str, name: str, said: str
) -> None:
    option = "--objective" if command == "train" else "--objectives"
    code, _, err = luspo(command, "--preset", "tiny", option, name)
    assert code == 2
    assert said.lower() in err.lower().replace("\n", " ")
    assert not (folder / "runs").exists()


def test_a_fork_takes_it(folder: Path, small_run: Callable[..., TrainRun]) -> None:
    fork = ForkConfig(checkpoint="a", sha256="b", step=1, schedule_steps=300)
    for parent in (small_run(), small_run(objective=NAME)):
        config = fork_configuration(parent, fork, Variant(NAME, "wide"), 0, 2)
        assert (config.objective.name, config.objective.own_parts) == (NAME, ("aggregation",))
    assert Variant(NAME, "wide").folder == "loss-luspo_again-wide"


def test_verl_refuses_it(folder: Path) -> None:
    config = resolve_train(preset="qwen2.5-7b", objective=NAME, sets=["run.engine=verl"])
    with pytest.raises(UsageError, match=r"objective.*one's own"):
        verl_command(config, VerlFiles(Path("/there/verl")), name="x", problems=17000)


def test_the_lab_runs_the_same_loss(folder: Path) -> None:
    sets = ["run.steps=3", *SAME_CLIP]
    own, built_in = (run_experiment(resolve_lab(name, sets=sets), 2) for name in (NAME, "luspo"))
    assert built_in.gradient_norm.max() > 0
    torch.testing.assert_close(own.length, built_in.length, rtol=1e-12, atol=0)
    torch.testing.assert_close(own.gradient_norm, built_in.gradient_norm, rtol=1e-9, atol=0)
    assert torch.equal(own.clip_low, built_in.clip_low)
    of_before = resolve_lab(NAME, sets=sets)
    (folder / "loss.py").write_text((folder / "loss.py").read_text() + "# edited\n")
    forget()
    with pytest.raises(UsageError, match="was changed since the run whose recipe this is"):
        run_experiment(of_before, 2)


def test_the_lab_takes_the_same_causes_out_of_it(folder: Path) -> None:
    """luspo_again loses what luspo loses, and gspo with an advantage of one's own its 1/|y|."""
    own, built_in = (
        attribute(config, run_experiment(config, 2))
        for config in (resolve_lab(name, sets=["run.steps=3", *SAME_CLIP]) for name in (NAME, "luspo"))
    )
    found = {effect.cause: effect.final_without for effect in own if effect.final_without}
    wanted = {effect.cause: effect.final_without for effect in built_in if effect.final_without}
    assert "std of the advantage" in found
    assert found.keys() == wanted.keys()
    assert [one.mean for one in found.values()] == pytest.approx([one.mean for one in wanted.values()], rel=1e-9)
    (folder / "centred.py").write_text(CENTRED)
    config = resolve_lab("centred.py:centred", sets=["run.steps=3", *SAME_CLIP])
    base = run_experiment(config, 2)
    without_std_of_luspo = without_std(resolve_lab("luspo", sets=["run.steps=3", *SAME_CLIP]), base)
    other = without_length_division(config, base)
    assert other is not None
    assert without_std_of_luspo is not None
    lengths = [run_experiment(one, 2).length for one in (other, without_std_of_luspo)]
    torch.testing.assert_close(*lengths, rtol=1e-9, atol=0)
    assert not torch.allclose(lengths[0], base.length, rtol=1e-6)


def test_without_a_side_of_gmpo_nothing_meets_it(folder: Path) -> None:
    """A surrogate of one's own reads the bounds as its base does: on a log scale, where 1 is a bound and no absence of one."""
    (folder / "geometric.py").write_text(
        "from luspo_cli.objectives import OwnObjective\n"
        "def pull(ratio, batch):\n    return -batch.log_ratio * batch.advantages\n"
        "mine = OwnObjective('gmpo', surrogate=pull)\nmasked = OwnObjective('dppo', surrogate=pull)\n"
    )
    for name, of_base in (("geometric.py:mine", "gmpo"), ("geometric.py:masked", "dppo"), (NAME, "luspo")):
        own, base = (without_low_side(resolve_lab(one), None) for one in (name, of_base))
        assert own is not None
        assert base is not None
        assert own.objective.clip_low == base.objective.clip_low == (1.0 if of_base == "luspo" else UNREACHED)


def test_the_lab_proves_a_version_of_a_file_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = objective_check.prove
    monkeypatch.setattr(objective_check, "prove", lambda objective: asked.append(objective.name) or real(objective))
    objective_check._lab_fault.cache_clear()
    config = resolve_lab(NAME, sets=["run.steps=1", *SAME_CLIP])
    attribute(config, run_experiment(config, 2))
    assert asked == [NAME]


def test_the_check_says_where_a_loss_is_not_invariant(folder: Path, luspo: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = luspo("objectives", "check", "loss.py")
    assert code == 0
    assert "loss.py:luspo_again" in out
    assert "invariant: every proof holds" in out
    line = "of_part = OwnObjective('dapo', aggregation=lambda batch: 1 / batch.mask.sum())"
    (folder / "part.py").write_text(f"from luspo_cli.objectives import OwnObjective\n{line}\n")
    code, out, _ = luspo("objectives", "check", "part.py:of_part", "--json")
    assert code == 1
    found = json.loads(out)["part.py:of_part"]
    assert not found["invariant"]
    failed = {
        proof["name"]: proof["difference"] for proof in found["proofs"] if not proof["holds"] and not proof["note"]
    }
    assert failed.keys() == {"micro-batches", "processes", "rows without advantage"}
    assert min(failed.values()) > 0.1
    code, out, _ = luspo("objectives", "check", "part.py")
    assert code == 1
    assert "not invariant: micro-batches, processes, rows without advantage" in out
    assert (found["reads"], found["reads_unknown"]) == ([], None)


def test_the_check_does_not_say_what_a_loss_reads_that_draws_random_numbers(
    folder: Path, luspo: Callable[..., tuple[int, str, str]]
) -> None:
    line = "drawn = OwnObjective('gspo', aggregation=lambda batch: torch.rand(batch.mask.shape) / batch.sequences)"
    (folder / "drawn.py").write_text(f"import torch\nfrom luspo_cli.objectives import OwnObjective\n{line}\n")
    code, out, _ = luspo("objectives", "check", "drawn.py:drawn")
    assert code == 1
    assert "reads: cannot be found out, for two calls with the same inputs differ\n" in out
    found = json.loads(luspo("objectives", "check", "drawn.py:drawn", "--json")[1])["drawn.py:drawn"]
    assert (found["reads"], found["reads_unknown"]) == ([], "two calls with the same inputs differ")


@pytest.mark.parametrize(
    "words", [["check", "nowhere.py"], ["check", "loss.py:absent"], ["show", "nowhere.py:x"], ["nowhere.py:x"]]
)
def test_what_is_not_there_is_one_sentence(
    folder: Path, luspo: Callable[..., tuple[int, str, str]], words: list[str]
) -> None:
    code, out, err = luspo("objectives", *words)
    assert (code, out) == (2, "")
    assert "nowhere.py" in err or "has no 'absent'" in err


def test_it_is_shown_like_any_other(folder: Path, luspo: Callable[..., tuple[int, str, str]]) -> None:
    for words in (["show", NAME], [NAME]):
        code, out, err = luspo("objectives", *words)
        assert (code, err) == (0, "")
        assert "w_it = aggregation(batch), one's own" in " ".join(out.split())
