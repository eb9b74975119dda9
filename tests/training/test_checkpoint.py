"""Checkpoints: whole or not at all, damage found, nothing pickled, the optimizer back as it was."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from luspo_cli import files
from luspo_cli.errors import RunError, UsageError
from luspo_cli.runs.checkpoints import Checkpoint, damage, find_checkpoints, newest_whole, remove_leftovers
from luspo_cli.training import checkpoint as module
from luspo_cli.training.checkpoint import save_checkpoint
from luspo_cli.training.optimizer import load_optimizer


class Trained:
    """A tiny model with an optimizer that has made some steps."""

    def __init__(self, model: Any, tokenizer: Any, steps: int) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.names = [name for name, _ in model.named_parameters()]
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        for step in range(steps):
            self.step(step)

    def step(self, seed: int) -> None:
        tokens = torch.randint(2, 26, (2, 8), generator=torch.Generator().manual_seed(seed))
        self.model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, folder: Path, step: int, keep: int = 9) -> Path:
        return save_checkpoint(folder, step, self.model, self.tokenizer, self.optimizer, self.names, keep)


@pytest.fixture
def trained(make_model: Callable[..., Any], made_tokenizer: Any) -> Trained:
    return Trained(make_model(), made_tokenizer, 2)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_what_a_checkpoint_holds(trained: Trained, tmp_path: Path, make_model: Callable[..., Any]) -> None:
    path = trained.save(tmp_path, 7)
    assert path == tmp_path / "step-000007"
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert {"checkpoint.json", "model/model.safetensors", "model/config.json", "model/tokenizer.json"} <= files
    assert {"trainer/optimizer.safetensors", "trainer/state.json"} <= files
    assert {Path(file).suffix for file in files} <= {".safetensors", ".json", ".jinja"}  # nothing that unpickles
    listed = json.loads((path / "checkpoint.json").read_text())
    assert listed["step"] == 7
    assert set(listed["files"]) == files - {"checkpoint.json"}
    assert damage(Checkpoint(path, 7)) is None


def test_model_and_optimizer_come_back_bit_for_bit(trained: Trained, tmp_path: Path, made_tokenizer: Any) -> None:
    """The next step of the restored pair ends with the same weights as the next step of the original."""
    from transformers import AutoModelForCausalLM

    path = trained.save(tmp_path, 2)
    restored = AutoModelForCausalLM.from_pretrained(path / "model", dtype=torch.float32, attn_implementation="luspo")
    again = Trained(restored, made_tokenizer, 0)
    load_optimizer(Checkpoint(path, 2).trainer, again.optimizer, again.names)
    trained.step(5)
    again.step(5)
    for one, other in zip(trained.model.parameters(), restored.parameters(), strict=True):
        assert torch.equal(one, other)
    fresh = Trained(
        AutoModelForCausalLM.from_pretrained(path / "model", attn_implementation="luspo"), made_tokenizer, 0
    )
    fresh.step(5)  # the moments matter: without them the step is another one
    assert not torch.equal(fresh.model.model.norm.weight, trained.model.model.norm.weight)


def test_only_the_newest_are_kept(trained: Trained, tmp_path: Path) -> None:
    for step in (2, 4, 6, 10):
        trained.save(tmp_path, step, keep=2)
    assert visible(tmp_path) == ["step-000006", "step-000010"]


@pytest.mark.parametrize("moment", ["save_optimizer", "digest", "sync"])
@pytest.mark.parametrize("error", [ValueError("injected"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_write_that_dies_leaves_what_was_there(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, error: BaseException
) -> None:
    trained.save(tmp_path, 2, keep=1)

    def die(*_: object) -> None:
        raise error

    monkeypatch.setattr(files if moment == "sync" else module, moment, die)
    with pytest.raises(type(error)):
        trained.save(tmp_path, 4, keep=1)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["step-000002"]  # no leftovers either
    assert damage(Checkpoint(tmp_path / "step-000002", 2)) is None


def test_leftovers_of_a_killed_write_are_passed_over_and_removed(trained: Trained, tmp_path: Path) -> None:
    path = trained.save(tmp_path, 2)
    shutil.copytree(path, tmp_path / ".step-000004.partial")
    assert [found.step for found in find_checkpoints(tmp_path)] == [2]
    trained.save(tmp_path, 6)
    assert sorted(os.listdir(tmp_path)) == ["step-000002", "step-000006"]


def test_a_checkpoint_of_the_same_step_is_replaced(trained: Trained, tmp_path: Path) -> None:
    path = trained.save(tmp_path, 2)
    (path / "model" / "model.safetensors").write_bytes(b"damaged")
    trained.save(tmp_path, 2)
    assert damage(Checkpoint(path, 2)) is None


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (shorten, "bytes instead of"),
    "altered": (flip_a_bit, "differs from its checksum"),
    "missing": (Path.unlink, "is missing"),
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("file", ["model/model.safetensors", "trainer/optimizer.safetensors", "model/tokenizer.json"])
def test_damage_is_found_and_the_one_before_is_taken(trained: Trained, tmp_path: Path, how: str, file: str) -> None:
    trained.save(tmp_path, 2)
    path = trained.save(tmp_path, 4)
    act, sentence = DAMAGES[how]
    act(path / file)
    checkpoint, notes = newest_whole(tmp_path)
    assert checkpoint == Checkpoint(tmp_path / "step-000002", 2)
    assert len(notes) == 1
    assert file in notes[0]
    assert sentence in notes[0]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b'{"files": 3}', b'{"files": {"a": 1}}', None])
def test_an_unreadable_list_is_damage(trained: Trained, tmp_path: Path, content: bytes | None) -> None:
    trained.save(tmp_path, 2)
    manifest = trained.save(tmp_path, 4) / "checkpoint.json"
    if content is None:
        manifest.unlink()
    else:
        manifest.write_bytes(content)
    checkpoint, notes = newest_whole(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 2
    assert "checkpoint.json is" in notes[0]


def test_nothing_whole_is_said_and_not_taken_for_nothing_there(trained: Trained, tmp_path: Path) -> None:
    assert newest_whole(tmp_path) == (None, [])
    (trained.save(tmp_path, 2) / "checkpoint.json").unlink()
    with pytest.raises(UsageError, match=r"no other checkpoint is whole; start again with --if-exists replace"):
        newest_whole(tmp_path)


def test_folders_of_other_people_are_left_alone(trained: Trained, tmp_path: Path) -> None:
    path = trained.save(tmp_path, 2)
    shutil.copytree(path, tmp_path / "step-000002-backup")
    assert [found.step for found in find_checkpoints(tmp_path)] == [2]
    trained.save(tmp_path, 4, keep=1)
    assert visible(tmp_path) == ["step-000002-backup", "step-000004"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, or a skip where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if (
        not mounted
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            subprocess.run(["umount", str(folder)], check=False, capture_output=True)


def test_a_full_disk_is_one_sentence_and_leaves_the_earlier_one_whole(trained: Trained, small_disk: Path) -> None:
    trained.save(small_disk, 1)  # about 170 KiB
    with pytest.raises(RunError, match="cannot write the checkpoint of step 2") as caught:
        trained.save(small_disk, 2)
    assert "\n" not in str(caught.value)
    assert "No space left" in str(caught.value)
    assert os.listdir(small_disk) == ["step-000001"]
    assert damage(Checkpoint(small_disk / "step-000001", 1)) is None


def test_a_damaged_later_checkpoint_does_not_push_out_the_one_just_written(trained: Trained, tmp_path: Path) -> None:
    for step in (2, 6):
        trained.save(tmp_path, step)
    flip_a_bit(tmp_path / "step-000006" / "model" / "model.safetensors")
    trained.save(tmp_path, 3, keep=1)  # gone on from step 2, stopped after step 3
    assert visible(tmp_path) == ["step-000003", "step-000006"]
    assert newest_whole(tmp_path)[0] == Checkpoint(tmp_path / "step-000003", 3)


def test_what_a_process_killed_while_it_deleted_left_goes_when_the_run_is_resumed(
    trained: Trained, tmp_path: Path
) -> None:
    for step in (2, 4, 6):
        trained.save(tmp_path, step)
    (tmp_path / "step-000002" / "checkpoint.json").unlink()
    (tmp_path / ".step-000008.partial").mkdir()
    remove_leftovers(tmp_path, 6, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step-000004", "step-000006"]
    remove_leftovers(tmp_path, 4, keep=1)  # step 6 is damaged: it is overwritten when its turn comes
    assert visible(tmp_path) == ["step-000004", "step-000006"]


def test_a_file_that_may_not_grow_is_one_sentence(trained: Trained, tmp_path: Path) -> None:
    """RLIMIT_FSIZE: the tensors' writer reports it in its own words, not as an OSError."""
    import resource

    trained.save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(RunError, match=r"cannot write the checkpoint of step 2.*File too large"):
            trained.save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == ["step-000001"]


@pytest.mark.parametrize("error", [Exception("Input/output error (os error 5)"), OSError(30, "Read-only file system")])
def test_a_broken_disk_under_any_writer_is_one_sentence(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The tokenizer's writer raises a bare Exception: nothing but its text says that the disk failed."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(type(trained.tokenizer), "save_pretrained", fail)
    with pytest.raises(RunError, match=r"cannot write the checkpoint of step 2 .*(Input/output error|Read-only)"):
        trained.save(tmp_path, 2)
    assert os.listdir(tmp_path) == []
