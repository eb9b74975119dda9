"""The command line as a user meets it: exit codes, one sentence on stderr, nothing half-written, light imports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(tmp_path: Path, make_model: Callable[..., Any], made_tokenizer: Any) -> str:
    make_model().save_pretrained(tmp_path / "model")
    made_tokenizer.save_pretrained(tmp_path / "model")
    return "model"


def write_data(path: Path, columns: dict[str, list[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def problems(number: int, answer: str = "3") -> dict[str, list[Any]]:
    return {
        "data_source": ["test"] * number,
        "prompt": [[{"role": "user", "content": f"a{i % 4}b2="}] for i in range(number)],
        "reward_model": [{"style": "rule", "ground_truth": answer}] * number,
    }


def only_sentence(error: str) -> str:
    """The last line of stderr, after progress bars of other libraries; it is ours and the only one of ours."""
    ours = [line for line in error.splitlines() if line.startswith("luspo: ")]
    assert len(ours) == 1, error
    assert error.rstrip().endswith(ours[0])
    assert "Traceback" not in error
    return ours[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--preset", "tinny"], "unknown preset 'tinny' (did you mean 'tiny'?)"),
        (["--preset", "tiny", "--objective", "lusop"], "unknown objective 'lusop' (did you mean 'luspo'?)"),
        (["--preset", "tiny", "--objective", "LUSPO"], "unknown objective 'LUSPO' (did you mean 'luspo'?)"),
        (["--preset", "tiny", "--set", "run.track=csv"], "--set: run.track.0 = 'csv': input should be 'tensorboard', 'wandb' or"),
        (["--preset", "tiny", "--set", "update.betas=0.9"], "a list belongs here, for example --set 'update.betas=[0.9, 0.99"),
        (["--preset", "tiny", "--set", "run.stepz=3"], "--set: unknown key 'run.stepz' (did you mean 'run.steps'?)"),
        (["--preset", "tiny", "--set", "run.steps=x"], "--set: run.steps = 'x': input should be a valid integer"),
        (["--preset", "tiny", "--set", "update.mini_batches=3"], "must be a multiple of update.mini_batches (3)"),
        (["--preset", "tiny", "--set", "model.revision=v1"], "'v1' applies to hub ids only, and model.path = 'made' is not one"),
        (["--config", "own.toml"], "cannot read configuration file own.toml: No such file or directory"),
        (["--preset", "tiny", "--if-exists", "overwrite"], "--if-exists must be refuse, resume or replace, not 'overwrite'"),
        ([], "say what to train: --preset NAME ("),
        (["--objective", "gspo"], "say what to train: --preset NAME ("),
        (["--resume"], "--resume needs --run: the folder to go on in"),
        (["--if-exists", "resume"], "--resume needs --run: the folder to go on in"),
        (["--if-exists", "resume", "--run", "none"], "there is no run to resume in none: it has no config.json"),
        (["--resume", "--if-exists", "replace", "--run", "none"], "--if-exists replace deletes it: give one of the two"),
        (["--resume", "--run", "runs/none"], "there is no run to resume in runs/none: it has no config.json"),
        (["--resume", "--run", "runs/none", "--set", "run.steps=9"], "leave out --objective and --set"),
        (["--preset", "qwen2.5-0.5b", "--set", "model.path=./none"], "which it is relative to; set it to a folder with"),
        (["--preset", "qwen2.5-0.5b", "--set", "model.path=nobody/none"], "cannot load model 'nobody/none'"),
    ],
)  # fmt: skip
def test_bad_requests_end_with_2_and_one_sentence(
    luspo: Command, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    code, out, error = luspo("train", *arguments)
    assert sentence in only_sentence(error)
    assert code == 2
    assert out == ""
    assert os.listdir(tmp_path) == []


def unreadable(folder: Path) -> None:
    (folder / "train.parquet").write_bytes(b"PAR1 no parquet at all PAR1")


def cut_short(folder: Path) -> None:
    write_data(folder / "train.parquet", problems(8))
    content = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(content[: len(content) // 2])


def empty(folder: Path) -> None:
    import pyarrow.parquet as pq

    write_data(folder / "train.parquet", problems(2))
    pq.write_table(pq.read_table(folder / "train.parquet").slice(0, 0), folder / "train.parquet")


DATA: dict[str, tuple[Callable[[Path], None], str]] = {
    "absent": (lambda folder: None, "There is no train.parquet in data"),
    "unreadable": (unreadable, "cannot be read as parquet"),
    "cut short": (cut_short, "cannot be read as parquet"),
    "empty": (empty, "data/train.parquet has no rows"),
    "another column": (
        lambda folder: write_data(folder / "train.parquet", {"promt": ["a"], "reward_model": [{"ground_truth": "1"}]}),
        "has no column 'prompt' (did you mean 'promt'?)",
    ),
    "without gold": (
        lambda folder: write_data(folder / "train.parquet", problems(8, answer="")),
        "row 0 of data/train.parquet has no gold answer",
    ),
    "too few": (lambda folder: write_data(folder / "train.parquet", problems(3)), "cannot be filled from 3"),
    "gold that no response can match": (
        lambda folder: write_data(folder / "train.parquet", problems(8, answer="#3")),
        "8 gold answers cannot be read (first: problem 'test/train/0')",
    ),
    "prompts too long": (
        lambda folder: write_data(
            folder / "train.parquet",
            problems(8) | {"prompt": [[{"role": "user", "content": "a1" * 40}]] * 8},
        ),
        "no problem of data has a prompt within data.max_prompt_tokens=64",
    ),
}


@pytest.mark.parametrize("what", DATA)
def test_bad_data_ends_with_2_and_one_sentence(luspo: Command, tmp_path: Path, model: str, what: str) -> None:
    (tmp_path / "data").mkdir()
    make, sentence = DATA[what]
    make(tmp_path / "data")
    sets = [f"model.path={model}", "data.train=data", "evaluation.every=0", "data.max_prompt_tokens=64"]
    sets += ["rollout.problems=4", "update.mini_batches=1"]
    code, _, error = luspo("train", "--preset", "tiny", *(word for one in sets for word in ("--set", one)))
    assert sentence in only_sentence(error)
    assert code == 2
    assert sorted(os.listdir(tmp_path)) == ["data", "model"]


def test_golds_that_the_math_verifier_cannot_read(luspo: Command, tmp_path: Path, model: str) -> None:
    """Checked by the worker processes of the rewards before the first step."""
    table = problems(8)
    table["reward_model"][5] = {"style": "rule", "ground_truth": "?!"}
    write_data(tmp_path / "data" / "train.parquet", table)
    sets = [f"model.path={model}", "data.train=data", "evaluation.every=0", "reward.verifier=math", "reward.workers=1"]
    sets += ["rollout.problems=4", "update.mini_batches=1"]
    code, _, error = luspo("train", "--preset", "tiny", *(word for one in sets for word in ("--set", one)))
    assert "1 gold answers cannot be read (first: problem 'test/train/5')" in only_sentence(error)
    assert code == 2
    assert not (tmp_path / "runs").exists()


def test_held_out_data_is_checked_too(luspo: Command, tmp_path: Path, model: str) -> None:
    write_data(tmp_path / "data" / "train.parquet", problems(8))
    write_data(tmp_path / "data" / "test.parquet", problems(5))
    sets = [f"model.path={model}", "data.train=data", "data.held_out=data", "evaluation.problems=6"]
    sets += ["rollout.problems=4", "update.mini_batches=1"]
    code, _, error = luspo("train", "--preset", "tiny", *(word for one in sets for word in ("--set", one)))
    assert "data has 5 problems, fewer than evaluation.problems=6" in only_sentence(error)
    assert code == 2
    assert not (tmp_path / "runs").exists()


def test_held_out_questions_that_are_trained_on_are_warned_about(luspo: Command, tmp_path: Path, model: str) -> None:
    write_data(tmp_path / "data" / "train.parquet", problems(8))
    sets = [f"model.path={model}", "data.train=data", "data.held_out=data/train.parquet", "run.steps=1"]
    sets += ["evaluation.problems=2", "evaluation.max_response_tokens=4", "rollout.problems=4", "rollout.group_size=2"]
    sets += ["rollout.max_response_tokens=4", "update.mini_batches=1"]
    code, _, error = luspo("train", "--preset", "tiny", *(word for one in sets for word in ("--set", one)))
    assert code == 0, error
    warning = (
        "warning: all 2 held-out questions of data.held_out (data/train.parquet) are training questions of data.train"
    )
    assert error.count(warning) == 1


def test_a_run_on_own_data_ends_with_0(luspo: Command, tmp_path: Path, model: str) -> None:
    write_data(tmp_path / "data" / "train.parquet", problems(8))
    sets = [f"model.path={model}", "data.train=data", "evaluation.every=0", "run.steps=2", "rollout.problems=4"]
    sets += ["rollout.group_size=2", "rollout.max_response_tokens=8", "update.mini_batches=2"]
    words = [word for one in sets for word in ("--set", one)]
    code, out, error = luspo("train", "--preset", "tiny", *words, "--json")
    assert code == 0, error
    assert json.loads(out) == {"run": "runs/tiny-luspo-seed0", "last_step": 2, "finished": True}
    assert re.search(r"^step +2/2  length +\d", error, re.MULTILINE)
    assert "done: runs/tiny-luspo-seed0" in error
    code, _, error = luspo("train", "--preset", "tiny", *words)
    assert "run folder runs/tiny-luspo-seed0 exists; go on with --resume" in only_sentence(error)
    assert code == 2
    # Both ways to resume read the stored configuration where nothing else is given.
    for how in (["--resume"], ["--if-exists", "resume"]):
        code, _, error = luspo("train", "--run", "runs/tiny-luspo-seed0", *how)
        assert code == 0, error
        assert "run runs/tiny-luspo-seed0 is finished: step 2 of 2" in error
    # Nor does the folder's configuration have to be said again to see its plan, or what else it takes to go on.
    code, out, _ = luspo("train", "--run", "runs/tiny-luspo-seed0", "--dry-run", "--json")
    stored = json.loads((tmp_path / "runs/tiny-luspo-seed0/config.json").read_text())
    plan = json.loads(out)
    assert (code, plan["configuration"]) == (0, stored)
    assert plan["missing"] == ["run folder runs/tiny-luspo-seed0 exists; go on with --resume, or choose another --run"]
    code, _, error = luspo("train", "--run", "runs/tiny-luspo-seed0")
    assert (code, only_sentence(error)) == (2, f"luspo: {plan['missing'][0]}")
    code, _, error = luspo("train", "--run", str(model), "--dry-run")  # a config.json that is none of a run's
    assert code == 2
    assert "say what to train: --preset NAME" in only_sentence(error)


def test_a_stored_configuration_that_is_no_text(luspo: Command, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_bytes(b'{"model": "\xff"}')
    code, _, error = luspo("train", "--run", "run", "--resume")
    assert "run/config.json is not a configuration that this version reads: Invalid JSON" in only_sentence(error)
    assert code == 2


def test_a_stored_configuration_that_cannot_be_read(
    luspo: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refused)
        code, _, error = luspo("train", "--run", "run", "--resume")
    assert "cannot read run/config.json: Permission denied; make it readable" in only_sentence(error)
    assert code == 2


def test_a_failed_run_ends_with_1(luspo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from luspo_cli.errors import RunError
    from luspo_cli.training import session

    def fail(*_: object, **__: object) -> None:
        raise RunError("the loss was not finite; lower update.learning_rate")

    monkeypatch.setattr(session, "run_training", fail)
    code, _, error = luspo("train", "--preset", "tiny")
    assert only_sentence(error) == "luspo: the loss was not finite; lower update.learning_rate"
    assert code == 1
    monkeypatch.setenv("LUSPO_DEBUG", "1")
    with pytest.raises(RunError):
        luspo("train", "--preset", "tiny")


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(
    luspo: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The shell leaves it in `--run=~/x` and in quotes."""
    from luspo_cli.config.eval import resolve_eval
    from luspo_cli.errors import RunError
    from luspo_cli.training import session

    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    (home / "mine.jsonl").write_text('{"question": "What is 1 + 1?", "answer": "2"}')
    assert luspo("prepare-data", "~/mine.jsonl", "--no-check-answers", "--out=~/data")[0] == 0
    assert (
        luspo("prepare-data", "gsm8k", "--from", "~/none", "--exclude=~/x", "--out=~/a")[2].count(f"{home}/none") == 1
    )
    called: list[Path] = []

    def note(_: object, run: Path, *__: object) -> None:
        called.append(run)
        raise RunError("that is all")

    monkeypatch.setattr(session, "run_training", note)
    luspo("train", "--preset", "tiny", "--run=~/run")
    assert called == [home / "run"]
    steps = "".join(json.dumps({"step": n, "response_length/mean": 9.0 - n}) + "\n" for n in range(1, 4))
    (home / "metrics.jsonl").write_text(steps)
    assert luspo("plot-length", "~/metrics.jsonl", "--out", "~/figures/lengths.svg")[0] == 0
    assert (home / "figures/lengths.svg").is_file()
    config = resolve_eval({"benchmark": ("gsm8k",)}, sets=["output.path=~/evals", "benchmark.data=~/d", "model.path=m"])
    assert (config.output.path, config.benchmark.data) == (f"{home}/evals", f"{home}/d")
    made = {path.name for path in home.iterdir() if not path.name.startswith(".")}  # beside caches of libraries
    assert made == {"mine.jsonl", "data", "metrics.jsonl", "figures"}
    assert list(here.iterdir()) == []


def test_ctrl_c_before_the_first_step_ends_with_130(luspo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from luspo_cli.training import session

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "run_training", interrupt)
    code, _, error = luspo("train", "--preset", "tiny")
    assert code == 130
    assert "Traceback" not in error


def test_a_dry_run_says_what_of_the_preset_does_not_hold_for_another_model(luspo: Command) -> None:
    code, out, error = luspo("train", "--preset", "easy-vqa", "--set", "model.path=mine", "--dry-run")
    assert (code, error) == (0, "")
    assert "warning: what the preset easy-vqa says in [warmup] and [model.shape] is for its made model" in out


@pytest.mark.parametrize("arguments", [["--preset", "qwen2.5-7b", "--objective", "luspo"], ["--preset", "tiny"]])
def test_a_dry_run_prints_the_plan_and_touches_nothing(luspo: Command, tmp_path: Path, arguments: list[str]) -> None:
    code, out, error = luspo("train", *arguments, "--dry-run")
    assert (code, error) == (0, "")
    for words in ("objective luspo", "sequence", "equation", "memory on one device", "missing", "run", "steps="):
        assert words in out
    absent = "data.train: There is no data file or folder data/dapo-math-17k; make it with `luspo prepare-data"
    assert (absent in out) is (arguments[1] == "qwen2.5-7b")
    code, out, _ = luspo("train", *arguments, "--dry-run", "--json")
    plan = json.loads(out)
    assert plan["objective"]["name"] == "luspo"
    assert plan["configuration"]["rollout"]["max_response_tokens"] > 0
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("arguments", [["--no-such-option"], ["trian"], ["train", "--set"]])
def test_what_the_parser_refuses_ends_with_2(luspo: Command, arguments: list[str]) -> None:
    code, _, error = luspo(*arguments)
    assert code == 2
    assert "Traceback" not in error


def test_help_shows_examples_that_parse(luspo: Command) -> None:
    """Every example of `luspo train` is a request that the command takes: a dry run of each must not fail."""
    from luspo_cli.commands.train import TRAIN_EXAMPLES

    code, out, _ = luspo("train", "--help")
    assert code == 0
    assert "luspo train --preset tiny --objective luspo" in re.sub(r"\s+", " ", out)
    for example in TRAIN_EXAMPLES:
        words = [
            word for word in example.split()[1:] if word != "--probe"
        ]  # which stands before a run, as a dry run does
        code, _, error = luspo(*words, *(["--dry-run"] if "--dry-run" not in words else []))
        if "--resume" in words:  # in an empty folder there is none
            assert code == 2, example
            assert "there is no run to resume" in error, example
        else:
            assert (code, error) == (0, ""), example


def test_the_version_is_that_of_the_package(luspo: Command) -> None:
    from luspo_cli import __version__

    assert luspo("--version") == (0, f"luspo {__version__}\n", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_what_a_stream_cannot_spell_ends_no_command(tmp_path: Path, encoding: str) -> None:
    """Dashes, ellipses and Greek letters stand in tables; a run's own name may be anything."""
    name = "run-Ω"
    run = tmp_path / name
    run.mkdir()
    rows = [{"step": step, "completions/mean_length": 10 * step} for step in (1, 2, 3)]
    (run / "trainer_state.json").write_text(json.dumps({"log_history": rows}))
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "NO_COLOR": "1"}
    for words in (
        ["compare", str(run)],
        ["objectives", "luspo"],
        ["eval", "--list"],
        ["--help"],
        ["objectives", "no-Ω"],
    ):
        done = subprocess.run([sys.executable, "-m", "luspo_cli", *words], capture_output=True, env=environment)
        assert b"Traceback" not in done.stderr, done.stderr
        assert done.returncode == (2 if words[-1] == "no-Ω" else 0)
        shown = done.stdout.decode(encoding)
        if words[0] == "compare":
            assert (name if encoding == "utf-8" else "run-?") in shown
    # What programs read is whole in every encoding.
    done = subprocess.run(
        [sys.executable, "-m", "luspo_cli", "compare", str(run), "--json"], capture_output=True, env=environment
    )
    assert json.loads(done.stdout.decode(encoding))["runs"][0]["name"] == name


def test_a_reader_that_leaves_early_sees_no_traceback() -> None:
    done = subprocess.run(
        f'"{sys.executable}" -m luspo_cli objectives | head -1', shell=True, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_reference_of_the_command_line_is_current() -> None:
    script = Path(__file__).parent / "command_help.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
