"""The run folder: who may open it, what a resume cuts off, and files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luspo_cli.config.stored import differing_keys
from luspo_cli.errors import RunError, UsageError
from luspo_cli.files import replace_file, write_json
from luspo_cli.runs.folder import RunFolder
from luspo_cli.runs.rollouts import store_rollouts

CONFIG = {"run": {"steps": 5, "seed": 0}, "objective": {"name": "luspo"}}


def opened(path: Path, how: str = "refuse", config: dict[str, Any] = CONFIG) -> bool:
    with RunFolder(path) as folder:
        return folder.open(config, how)  # type: ignore[arg-type]


def test_a_new_folder_holds_the_configuration(tmp_path: Path) -> None:
    assert opened(tmp_path / "deep" / "run") is False
    assert json.loads((tmp_path / "deep" / "run" / "config.json").read_text()) == CONFIG


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    assert opened(tmp_path) is False


def test_an_existing_run_is_refused_resumed_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run"
    opened(path)
    (path / "metrics.jsonl").write_text('{"step": 1}\n')
    (path / "rollouts").mkdir()
    with pytest.raises(UsageError, match="exists; go on with --resume, or choose another --run"):
        opened(path)
    assert opened(path, "resume") is True
    assert (path / "metrics.jsonl").exists()
    assert opened(path, "replace", {"run": {"steps": 9}}) is False
    assert sorted(os.listdir(path)) == [".lock", "config.json"]


@pytest.mark.parametrize("how", ["refuse", "resume", "replace"])
def test_what_is_no_run_folder_is_never_touched(tmp_path: Path, how: str) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="exists and is no run folder"):
        opened(tmp_path, how)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(UsageError, match="exists and is no run folder"):
        opened(tmp_path / "thesis.tex", how)
    with pytest.raises(UsageError, match=r"cannot make run folder .*Not a directory"):
        opened(tmp_path / "thesis.tex" / "run", how)


def test_a_start_that_failed_before_its_configuration_does_not_block_the_next(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    assert opened(tmp_path) is False


def fails_before_step_1(path: Path) -> None:
    opened(path)
    for name in ("provenance.json", "tracking.json", "run.log", "console.log"):
        (path / name).write_text("of the first start\n")


@pytest.mark.parametrize("how", ["refuse", "resume"])
def test_a_start_that_failed_before_anything_was_recorded_is_started_over(tmp_path: Path, how: str) -> None:
    fails_before_step_1(tmp_path)
    other = {"run": {"steps": 9}}
    assert opened(tmp_path, how, other) is False
    assert json.loads((tmp_path / "config.json").read_text()) == other
    assert sorted(os.listdir(tmp_path)) == [".lock", "config.json", "console.log", "run.log"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "evals", "checkpoints", "thesis.tex"])
def test_a_folder_with_anything_else_is_not_started_over(tmp_path: Path, name: str) -> None:
    fails_before_step_1(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match="exists; go on with --resume"):
        opened(tmp_path)
    assert (tmp_path / "provenance.json").exists()


def test_a_configuration_of_something_else_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    with pytest.raises(UsageError, match="exists; go on with --resume"):
        opened(tmp_path)
    assert (tmp_path / "config.json").read_text() == '{"hidden_size": 64}'


def test_another_configuration_is_refused_by_its_keys(tmp_path: Path) -> None:
    opened(tmp_path)
    RunFolder(tmp_path).append_metrics({"step": 1})
    other = {"run": {"steps": 6, "seed": 0}, "objective": {"name": "gspo", "clip_low": 0.1}}
    with pytest.raises(UsageError) as caught:
        opened(tmp_path, "resume", other)
    assert str(caught.value).endswith(
        "was started with another configuration: objective.clip_low (None there, 0.1 now),"
        " objective.name ('luspo' there, 'gspo' now), run.steps (5 there, 6 now); use another --run"
    )
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize("content", ["{", "", "[]"])
def test_an_unreadable_configuration(tmp_path: Path, content: str) -> None:
    opened(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"config\.json is not readable JSON"):
        opened(tmp_path, "resume")


def test_a_folder_in_use_is_refused_and_free_again_when_its_process_is_gone(tmp_path: Path) -> None:
    """The lock is the kernel's: even a killed process leaves none behind."""
    opened(tmp_path)
    RunFolder(tmp_path).append_metrics({"step": 1})
    code = "import sys, pathlib; from luspo_cli.runs.folder import RunFolder; import json\n"
    code += f"RunFolder(pathlib.Path({str(tmp_path)!r})).open(json.loads({json.dumps(CONFIG)!r}), 'resume')\n"
    code += "print('open', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        for how in ("refuse", "resume", "replace"):
            with pytest.raises(UsageError, match="another process is training in"):
                opened(tmp_path, how)
            with pytest.raises(UsageError, match="another process is training in"):
                RunFolder(tmp_path).check({"run": {}}, how)
        assert (tmp_path / "config.json").exists()
    finally:
        holder.kill()
        holder.communicate()
    assert opened(tmp_path, "resume") is True


def test_resuming_cuts_back_to_the_checkpoint(tmp_path: Path) -> None:
    opened(tmp_path)
    with RunFolder(tmp_path) as folder:
        for step in range(1, 6):
            folder.append_metrics({"step": step, "tokens/total": 10 * step})
        (tmp_path / "evals").mkdir()
        evals = tmp_path / "evals" / "held-out.jsonl"
        evals.write_text('{"step": 0}\n{"step": 2}\n{"step": 4}\n')
        (tmp_path / "rollouts").mkdir()
        for step in (1, 3, 5):
            (tmp_path / "rollouts" / f"step-{step:06d}.parquet").touch()
        with folder.metrics_path.open("a") as file:
            file.write('{"step": 6, "tok')  # torn in the middle of a write
        folder.cut_back(3)
        steps = [json.loads(line)["step"] for line in folder.metrics_path.read_text().splitlines()]
        assert steps == [1, 2, 3]
        assert folder.last_tokens_total() == 30
        assert [json.loads(line)["step"] for line in evals.read_text().splitlines()] == [0, 2]
        assert sorted(os.listdir(tmp_path / "rollouts")) == ["step-000001.parquet", "step-000003.parquet"]
        folder.cut_back(0)
        assert folder.metrics_path.read_text() == ""
        assert folder.last_tokens_total() == 0
        assert evals.read_text() == '{"step": 0}\n'


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        (None, "lacks 1, 2, 3 and 1 more of the steps 1 to 4"),
        (["1", "2", "4"], "lacks 3 of"),
        (["1", "2", "3", "3", "4"], "doubles 3 of"),
        (["2", "2", "3", "4"], "lacks 1 and doubles 2 of"),
        (["1", "3", "2", "4"], "is out of order of"),
        (["1", '"x"', "3", "4"], "lacks 2 of"),
        (["1", "2", "3", "true"], "lacks 4 of"),
    ],
)
def test_a_resume_that_would_lose_steps_is_refused(tmp_path: Path, lines: list[str] | None, wrong: str) -> None:
    opened(tmp_path)
    folder = RunFolder(tmp_path)
    (tmp_path / "evals").mkdir()
    evals = tmp_path / "evals" / "held-out.jsonl"
    evals.write_text('{"step": 9}\n')
    if lines is not None:
        folder.metrics_path.write_text("".join(f'{{"step": {step}}}\n' for step in lines))
    with pytest.raises(UsageError, match=rf"metrics\.jsonl {wrong}.*start again with --if-exists replace"):
        folder.cut_back(4)
    assert evals.read_text() == '{"step": 9}\n'
    folder.cut_back(0)  # without a checkpoint everything is computed again
    assert folder.records() == []


def test_numbers_that_json_does_not_know_are_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    folder = RunFolder(tmp_path)
    folder.append_metrics({"step": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.append_metrics({"step": 2, "objective/loss": float("nan")})
    assert folder.metrics_path.read_text() == '{"step": 1}\n'
    with pytest.raises(AssertionError, match=r"config\.json would hold what JSON does not know"):
        write_json(tmp_path / "config.json", {"run": float("nan")})
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})
    real = os.write

    def full_after_five(descriptor: int, data: bytes) -> int:
        if len(data) > 5:
            return real(descriptor, data[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full_after_five)
    with pytest.raises(RunError, match=r"cannot write .*a\.json: No space left on device; free some space"):
        replace_file(file, b"0123456789")
    folder = RunFolder(tmp_path)
    with pytest.raises(RunError, match=r"metrics\.jsonl"):
        folder.append_metrics({"step": 1})
    monkeypatch.undo()
    assert json.loads(file.read_text()) == {"old": 1}
    assert folder.metrics_path.read_text() == ""  # no torn line
    assert sorted(os.listdir(tmp_path)) == ["a.json", "metrics.jsonl"]


def test_differing_keys_are_dotted_and_sorted() -> None:
    left = {"a": {"x": 1, "y": {"z": 2}}, "b": [1, 2], "c": 3}
    right = {"a": {"x": 1, "y": {"z": 5}}, "b": [1, 3], "d": None}
    assert differing_keys(left, right) == [("a.y.z", 2, 5), ("b", [1, 2], [1, 3]), ("c", 3, None)]
    assert differing_keys(left, left) == []
    assert differing_keys({"a": {}}, {"a": {"b": 1}}) == [("a.b", None, 1)]
    assert differing_keys({"a": 3}, {"a": {}}) == [("a", 3, {})]


def test_what_a_killed_process_was_writing_means_nothing(tmp_path: Path) -> None:
    """Killed inside the very first write: the same command starts over; later leftovers go when the run is resumed."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.json.partial").write_text('{"obj')
    assert opened(run) is False
    assert not list(run.glob(".*.partial"))
    RunFolder(run).append_metrics({"step": 1})
    (run / "rollouts").mkdir()
    for leftover in (run / ".metrics.jsonl.partial", run / "rollouts" / ".step-000002.parquet.partial"):
        leftover.write_text("half")
    with RunFolder(run) as folder:
        assert folder.open(CONFIG, "resume") is True
        folder.cut_back(1)
    assert not list(run.rglob(".*.partial"))


def test_replacing_deletes_the_configuration_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle of it, the folder must still be known as a run's: the same command goes on deleting."""
    opened(tmp_path)
    for name in ("a.json", "metrics.jsonl", "z.json"):
        (tmp_path / name).touch()
    unlinked: list[str] = []
    unlink = Path.unlink

    def note(path: Path, missing_ok: bool = False) -> None:
        unlinked.append(path.name)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", note)
    opened(tmp_path, "replace")
    assert sorted(unlinked[:3]) == ["a.json", "metrics.jsonl", "z.json"]
    assert unlinked[3] == "config.json"


def test_a_folder_that_moved_is_not_written_to_under_its_old_name(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunFolder(run) as folder:
        folder.open(CONFIG, "refuse")
        folder.check_still_here()
        run.rename(tmp_path / "moved")
        with pytest.raises(RunError, match="was moved or deleted while this process trained in it"):
            folder.check_still_here()
        with pytest.raises(RunError, match=r"cannot write .*metrics\.jsonl: No such file or directory; mend that"):
            folder.append_metrics({"step": 1})
        opened(run)  # somebody begins another run under the old name
        with pytest.raises(RunError, match="was moved or deleted"):
            folder.check_still_here()
    assert json.loads((tmp_path / "moved" / "config.json").read_text()) == CONFIG


def test_a_disk_that_is_found_full_only_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems take the bytes and say at fsync that there is no room."""
    opened(tmp_path)
    folder = RunFolder(tmp_path)
    folder.append_metrics({"step": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device; free some space"):
        folder.append_metrics({"step": 2})
    with pytest.raises(RunError, match="No space left on device"):
        write_json(tmp_path / "config.json", {"other": 1})
    assert folder.metrics_path.read_text() == '{"step": 1}\n'
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds a descriptor's file in /proc")
def test_file_and_name_are_on_the_disk_before_a_write_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes before the move, the folder's list of names after it: a power cut leaves the old file or the new one."""
    done: list[str] = []
    sync, move = os.fsync, Path.replace

    def noted_sync(descriptor: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).relative_to(tmp_path)}")
        sync(descriptor)

    def noted_move(path: Path, to: Path) -> Path:
        done.append(f"move {to.relative_to(tmp_path)}")
        return move(path, to)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_move)
    replace_file(tmp_path / "evals" / "a.json", b"{}")
    store_rollouts(tmp_path / "rollouts", 3, [], [])
    assert done == [
        "sync evals/.a.json.partial", "move evals/a.json", "sync evals",
        "sync rollouts/.step-000003.parquet.partial", "move rollouts/step-000003.parquet", "sync rollouts",
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.json", "step-000003.parquet"]


@pytest.mark.parametrize("how", ["refuse", "resume", "replace"])
def test_a_folder_that_could_not_be_made_is_refused_by_the_look_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    """Before minutes of loading a model; nothing is left of the look."""
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UsageError, match=rf"^cannot make run folder .*file/a/b: {tmp_path / 'file'}: Not a directory; choose"
    ):
        RunFolder(tmp_path / "file" / "a" / "b").check({}, how)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(
        UsageError, match=rf"^cannot write in {tmp_path}, where run folder a/b belongs: Permission denied; choose"
    ):
        RunFolder(Path("a/b")).check({}, how)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
