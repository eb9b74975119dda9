"""prepare() where it cannot: bad input in one sentence, nothing half-written, a hub that is not there."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luspo_cli.data import prepare as prepare_module
from luspo_cli.data.columns import SourceOptions, SourceRow
from luspo_cli.data.filtering import PassRates
from luspo_cli.data.prepare import prepare
from luspo_cli.data.problems import load_problems
from luspo_cli.data.sources import Source
from luspo_cli.errors import RunError, UsageError

REPO = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("LUSPO_DATA", REPO / "../shared/data"))


def write_lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def some_rows(count: int) -> list[dict[str, Any]]:
    return [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(count)]


def nothing_left(folder: Path) -> bool:
    return not list(folder.glob(".*"))


def test_refusals_name_what_to_do(tmp_path: Path) -> None:
    source = str(write_lines(tmp_path / "mine.jsonl", some_rows(5)))
    empty = str(write_lines(tmp_path / "empty.jsonl", []))
    useless = str(write_lines(tmp_path / "useless.jsonl", [{"question": "a?", "answer": ""}] * 3))
    (tmp_path / "bare").mkdir()
    archive = tmp_path / "images.zip"
    archive.touch()
    pictures = tmp_path / "bare/pictures.zip"
    with zipfile.ZipFile(pictures, "w") as packed:
        packed.writestr("a.png", b"")
    cases: list[tuple[list[str], dict[str, Any], str]] = [
        ([], {}, "at least one source"),
        (["gsm9k"], {}, r"did you mean 'gsm8k'"),
        (["virl39k"], {"options": SourceOptions(from_path=tmp_path / "bare")}, "no train file of virl39k"),
        (["virl39k"], {"options": SourceOptions(from_path=Path(archive))}, r"images\.zip cannot be read as an archive"),
        (["virl39k"], {"options": SourceOptions(from_path=pictures)}, "no train file of virl39k.*none beside it"),
        ([source], {"options": SourceOptions(images_from=(tmp_path / "none.zip",))}, "neither a folder nor an archive"),
        ([source], {"options": SourceOptions(image_columns=("img",))}, r"no column 'img'.*question, answer"),
        ([source], {"pass_rates": PassRates(0.9, 0.1)}, "--min-pass-rate 0.9 is above --max-pass-rate 0.1"),
        ([source], {"pass_rates": PassRates(float("nan"))}, "must be numbers"),
        ([source], {"pass_rates": PassRates(highest=90)}, "--max-pass-rate 90 is no share.*between 0 and 1"),
        ([source], {"pass_rates": PassRates(-0.5)}, "--min-pass-rate -0.5 is no share"),
        ([source], {"pass_rates": PassRates(0.1)}, r"5 pass rate missing.*name the column with --pass-rate-column"),
        ([str(tmp_path / "nowhere.jsonl")], {}, "neither a file or folder nor a known source"),
        ([str(tmp_path / "bare")], {}, "holds no data file"),
        ([source], {"options": SourceOptions(from_path=tmp_path)}, "--from names the files of gsm8k"),
        (["gsm8k"], {"options": SourceOptions(from_path=tmp_path / "nowhere")}, "no file or folder"),
        (["gsm8k"], {"options": SourceOptions(from_path=tmp_path / "bare")}, "no train or test file of gsm8k"),
        (["gsm8k", "gsm8k"], {"options": SourceOptions(from_path=tmp_path)}, "one source"),
        ([source], {"options": SourceOptions(question_column="q")}, "no column 'q'.*question, answer"),
        ([source], {"options": SourceOptions(answer_column="anser")}, "did you mean 'answer'"),
        ([empty], {}, "no rows"),
        ([useless], {}, r"None of the 3 rows .* \(3 empty answer\)"),
        ([source], {"prompt": "qwen"}, "no prompt template"),
        ([source], {"splits": ["tran"]}, r"no split 'tran' \(did you mean 'train'"),
        ([source], {"held_out": 5}, "nothing would be left"),
        ([source], {"held_out": -1}, "0 or more"),
        ([source], {"limit": 0}, "1 or more"),
        ([source], {"exclude": [tmp_path / "nowhere"]}, "to exclude"),
        ([source], {"exclude": [tmp_path / "bare"]}, "no question to exclude"),
    ]
    for sources, options, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            prepare(sources, tmp_path / "out", **options)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
        assert nothing_left(tmp_path)


def test_nothing_is_held_out_of_a_split_that_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> Iterator[SourceRow]:
        pytest.fail("was read")

    def opened(name: str, options: SourceOptions) -> Source:
        return Source(name, name, "plain", {"train": read, "validation": read})

    monkeypatch.setattr(prepare_module, "open_source", opened)
    with pytest.raises(UsageError, match=r"only validation is read; add --split train") as caught:
        prepare(["owner/name"], tmp_path / "out", splits=["validation"], held_out=50)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_existing_folders(tmp_path: Path) -> None:
    source = str(write_lines(tmp_path / "mine.jsonl", some_rows(5)))
    out = tmp_path / "out"
    out.mkdir()
    prepare([source], out)
    with pytest.raises(UsageError, match="--if-exists replace"):
        prepare([source], out)
    (out / "stale.txt").write_text("old")
    prepare([source], out, if_exists="replace", limit=3)
    assert len(load_problems(out)) == 3
    assert not (out / "stale.txt").exists()
    assert nothing_left(tmp_path)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years")
    for if_exists in ("refuse", "replace"):
        with pytest.raises(UsageError, match="not written by prepare-data"):
            prepare([source], precious, if_exists=if_exists)  # type: ignore[arg-type]
    assert (precious / "thesis.tex").read_text() == "years"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_end_in_the_middle_keeps_the_old_and_leaves_nothing_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    source = str(write_lines(tmp_path / "mine.jsonl", some_rows(5)))
    prepare([source], tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(prepare_module, "write_manifest", fail)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else RunError
    with pytest.raises(
        expected,
        match="No space left on device; nothing half-written is left; free some space"
        if expected is RunError
        else None,
    ):
        prepare([source], tmp_path / "out", if_exists="replace", limit=2)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    with pytest.raises(expected):
        prepare([source], tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert nothing_left(tmp_path)


def test_a_killed_preparation_is_cleared_away_by_the_next(tmp_path: Path) -> None:
    code = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from luspo_cli.data import prepare as module
        module.write_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        module.prepare(["arithmetic"], Path({str(tmp_path / "out")!r}))
        """
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == -9
    assert not (tmp_path / "out").exists()
    assert not nothing_left(tmp_path)
    prepare(["arithmetic"], tmp_path / "out", options=SourceOptions(size=10))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_write_that_really_fails_is_one_sentence(tmp_path: Path) -> None:
    code = textwrap.dedent(
        f"""
        import resource, sys
        from pathlib import Path
        from luspo_cli.data.prepare import prepare
        from luspo_cli.data.columns import SourceOptions
        from luspo_cli.errors import RunError
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            prepare(["arithmetic"], Path({str(tmp_path / "out")!r}), options=SourceOptions(size=3000))
        except RunError as error:
            print(error)
            sys.exit(1)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "File too large; nothing half-written is left; free some space" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_hub_that_cannot_be_reached_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub.\nDetails follow")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(RunError, match=r"openai/gsm8k .*Couldn't reach the Hub\); .*--from PATH") as caught:
        prepare(["gsm8k"], tmp_path / "out")
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match=r"owner/name is no local path"):
        prepare(["owner/name"], tmp_path / "out")


def test_the_hub_gives_splits_and_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[object, ...]] = []

    def load(hub_id: str, config: str | None, revision: str | None) -> object:
        asked.append((hub_id, config, revision))
        rows = [{"question": f"{n}?", "answer": f"because\n#### {n}"} for n in range(4)]
        tables = datasets.DatasetDict(train=datasets.Dataset.from_list(rows), test=datasets.Dataset.from_list(rows[:1]))
        if revision is None:
            tables["train"].info.download_checksums = {f"hf://datasets/{hub_id}@{'ab' * 20}/main/train.parquet": {}}
        return tables

    monkeypatch.setattr(datasets, "load_dataset", load)
    prepared = prepare(["gsm8k"], tmp_path / "out", options=SourceOptions(revision="abc"))
    assert asked == [("openai/gsm8k", "main", "abc")]
    assert prepared.rows == {"train": 3, "test": 1}
    assert prepared.manifest["sources"][0]["revision"] == "abc"
    prepared = prepare(["owner/name:part"], tmp_path / "two", splits=["train"])
    assert asked[1] == ("owner/name", "part", None)
    assert prepared.manifest["sources"][0]["revision"] == "ab" * 20
