"""The one writer: whole or not at all for files and folders, one writer at a time, and one sentence where the disk refuses."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from luspo_cli import files
from luspo_cli.errors import RunError, UsageError
from luspo_cli.files import (
    append,
    cannot_write,
    file_sha256,
    lock,
    read_object,
    replace_file,
    replacing,
    replacing_folder,
    require_object,
    said_in_one_sentence,
    write_failure,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def made(path: Path, error: BaseException) -> None:
    """Begin to write a folder, and fail."""
    with replacing_folder(path) as folder:
        assert names(folder) == []
        (folder / "new").touch()
        raise error


def test_a_folder_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with replacing_folder(tmp_path / "made/a") as folder:
            (folder / "sub").mkdir()
            (folder / f"sub/{content}").write_text(content)
            assert not (tmp_path / f"made/a/sub/{content}").exists()
    assert names(tmp_path) == ["made", "made/a", "made/a/sub", "made/a/sub/two"]


def test_every_file_is_on_the_disk_before_a_folder_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, move = files.sync, Path.rename
    monkeypatch.setattr(files, "sync", lambda path: (done.append(f"sync {path.name}"), sync(path))[1])
    monkeypatch.setattr(Path, "rename", lambda path, to: (done.append(f"move {to.name}"), move(path, to))[1])
    with replacing_folder(tmp_path / "a") as folder:
        (folder / "b").write_text("content")
    assert done == ["sync b", "sync .a.partial", "move a", f"sync {tmp_path.name}"]


@pytest.mark.parametrize("error", [ValueError("injected"), KeyboardInterrupt()])
def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/old").touch()
    with pytest.raises(type(error)):
        made(tmp_path / "a", error)
    assert names(tmp_path) == ["a", "a/old"]


def test_what_a_killed_process_left_of_a_folder_is_cleared_away(tmp_path: Path) -> None:
    """Killed while it wrote, and killed between the two renames: the old folder comes back before the new one is made."""
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".a.partial/half").touch()
    (tmp_path / ".a.replaced.partial").mkdir()
    (tmp_path / ".a.replaced.partial/old").touch()
    with pytest.raises(ValueError, match="injected"):
        made(tmp_path / "a", ValueError("injected"))
    assert names(tmp_path) == ["a", "a/old"]


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/old").touch()
    rename = Path.rename

    def fail(path: Path, to: Path) -> Path:
        if path.name == ".a.partial":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output"), replacing_folder(tmp_path / "a"):
        pass
    assert names(tmp_path) == ["a", "a/old"]


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "a") as folder:
        (folder / "mine").touch()
        code = "import sys, pathlib, luspo_cli.files as f\nwith f.replacing_folder(pathlib.Path(sys.argv[1])): pass"
        second = subprocess.run([sys.executable, "-c", code, tmp_path / "a"], capture_output=True, text=True)
        assert second.returncode == 1
        assert f"another process is writing {tmp_path / 'a'}; wait for it" in second.stderr
    assert names(tmp_path) == ["a", "a/mine"]


def test_two_that_replace_one_file_take_turns(tmp_path: Path) -> None:
    """The second waits for the first, and writes a file of its own: what is there at the end is one of the two, whole."""
    path, begun = tmp_path / "a", threading.Event()

    def second() -> None:
        begun.set()
        replace_file(path, b"second")

    other = threading.Thread(target=second)
    with replacing(path) as stream:
        stream.write(b"the first")
        other.start()
        begun.wait()
        other.join(0.2)
        assert other.is_alive()
    other.join()
    assert path.read_bytes() == b"second"
    assert names(tmp_path) == ["a"]


def test_a_leftover_that_is_longer_does_not_show_through(tmp_path: Path) -> None:
    (tmp_path / ".a.partial").write_bytes(b"much longer than what comes")
    replace_file(tmp_path / "a", b"short")
    assert (tmp_path / "a").read_bytes() == b"short"


def test_a_lock_is_free_again_when_its_process_is_gone(tmp_path: Path) -> None:
    held = lock(tmp_path / "a")
    with pytest.raises(BlockingIOError):
        lock(tmp_path / "a")
    with pytest.raises(BlockingIOError):
        lock(tmp_path / "a", shared=True)
    os.close(held)
    first, second = lock(tmp_path / "a", shared=True), lock(tmp_path / "a", shared=True)
    os.close(first)
    os.close(second)
    code = "import os, sys, pathlib, luspo_cli.files as f; f.lock(pathlib.Path(sys.argv[1])); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "a"]).returncode == 9
    os.close(lock(tmp_path / "a"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "No space left on device; free some space"),
        (OSError(27, "File too large"), "File too large; free some space"),
        (OSError(30, "Read-only file system"), "Read-only file system; mend that"),
        (Exception("No space left on device (os error 28)"), "No space left on device (os error 28); free some space"),
        (Exception("Input/output error (os error 5)"), "Input/output error (os error 5); mend that"),
    ],
)
def test_a_disk_that_refuses_is_one_sentence(error: Exception, said: str) -> None:
    with pytest.raises(RunError) as caught, said_in_one_sentence("it"):
        raise error
    assert str(caught.value) == f"cannot write it: {said}, then go on with --resume"


def test_a_file_in_the_midst_of_a_folder_says_the_folders_sentence() -> None:
    said = cannot_write("the file", OSError(28, "No space left on device"))
    said.__cause__ = OSError(28, "No space left on device")
    with pytest.raises(RunError) as caught, said_in_one_sentence("the folder", "or take another", "nothing is left"):
        raise said
    assert str(caught.value) == (
        "cannot write the folder: No space left on device; nothing is left; free some space, or take another"
    )


@pytest.mark.parametrize(
    "error", [ValueError("a defect"), RunError("something else"), UsageError("I/O error in words")]
)
def test_another_failure_keeps_its_own_words(error: Exception) -> None:
    assert write_failure(error) is None
    with pytest.raises(type(error), match=str(error)), said_in_one_sentence("it"):
        raise error


def test_a_failed_append_cuts_off_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(tmp_path / "a", b"one\n")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="free some space, then the same command goes on"):
        append(tmp_path / "a", b"two\n", "then the same command goes on")
    assert (tmp_path / "a").read_bytes() == b"one\n"


def test_the_digest_of_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert file_sha256(tmp_path / "a") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_an_object_or_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    with pytest.raises(UsageError, match=r"a\.json cannot be read: No such file or directory; restore it"):
        require_object(file, "restore it")
    for content, words in (
        ("{", "is not readable JSON; restore"),
        ("[1]", "is not readable JSON: it holds no JSON object"),
    ):
        file.write_text(content)
        assert read_object(file) is None
        with pytest.raises(UsageError, match=words):
            require_object(file, "restore it")
    write_json(file, {"a": [1, None]})
    assert read_object(file) == require_object(file, "") == {"a": [1, None]}
    file.write_bytes(b'{"a": "\xff"}')  # no UTF-8
    assert read_object(file) is None


def test_what_json_does_not_know_is_a_defect(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="what JSON does not know"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert names(tmp_path) == []
