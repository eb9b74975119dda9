"""Prepared data with images: the published layouts, other people's tables, repeats, determinism, and memory."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest
from PIL import Image

from doubles.hostile_images import encoded, noise
from luspo_cli.data.columns import SourceOptions
from luspo_cli.data.filtering import PassRates
from luspo_cli.data.images import StoredImage
from luspo_cli.data.overlap import held_out_warning
from luspo_cli.data.prepare import Prepared, prepare
from luspo_cli.data.problems import load_problems
from luspo_cli.errors import UsageError

REPO = Path(__file__).resolve().parents[2]
A, B, C = (encoded(noise(20 + n, 30)) for n in range(3))


def left_out(prepared: Prepared, split: str = "train") -> dict[str, int]:
    found = prepared.manifest["splits"][split]["left_out"]
    return {reason: count for reason, count in found.items() if count}


def parquet(file: Path, rows: list[dict[str, Any]], schema: pyarrow.Schema | None = None) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), file)
    return str(file)


def contents(folder: Path, split: str = "train") -> list[list[bytes]]:
    return [[image.content() for image in problem.images] for problem in load_problems(folder, split=split)]  # type: ignore[attr-defined]


def virl_row(number: int, images: list[str], rate: float, question: str | None = None) -> dict[str, Any]:
    return {
        "question": question or f"{'<image>' * len(images)}\nHow many of {number}?",
        "answer": rf"\boxed{{{number}}}",
        "PassRate_32BTrained": 1.0,
        "PassRate_7BBase": rate,
        "category": "Spatial Reasoning",
        "source": "Processed",
        "qid": f"q-{number}",
        "image": images,
    }


@pytest.fixture
def virl(tmp_path: Path) -> Path:
    folder = tmp_path / "ViRL39K"
    folder.mkdir()
    names = ["images/q-0-0.png", "images/q-1-0.png"]
    rows = [
        virl_row(0, names[:1], 0.25),
        virl_row(1, names, 0.5),
        virl_row(2, [], 0.5, "Without a picture?"),
        virl_row(3, names[:1], 1.0),
        virl_row(4, names[1:], -1.0),
        virl_row(5, names[1:], 0.5, "The mark was lost?"),
        virl_row(6, [], 0.5, "<image>The picture was lost?"),
    ]
    parquet(folder / "39Krelease.parquet", rows)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for name, content in zip(names, (A, B), strict=True):
            archive.writestr(name, content)
    return folder


def test_virl39k_as_it_is_published(virl: Path, tmp_path: Path) -> None:
    options = SourceOptions(from_path=virl)
    prepared = prepare(["virl39k"], tmp_path / "out", options=options, pass_rates=PassRates(highest=0.9))
    assert left_out(prepared) == {"pass_rate_outside": 1, "pass_rate_missing": 1, "image_marks_differ": 1}
    problems = load_problems(tmp_path / "out")
    assert [problem.id for problem in problems] == [f"virl39k/train/{n}" for n in range(4)]
    assert [problem.answer for problem in problems] == ["0", "1", "2", "5"]
    assert contents(tmp_path / "out") == [[A], [A, B], [], [B]]
    assert [problem.prompt[-1].content for problem in problems] == [
        "<image>\nHow many of 0?",
        "<image><image>\nHow many of 1?",
        "Without a picture?",
        "<image>The mark was lost?",
    ]
    extra = {key: problems[0].extra[key] for key in ("qid", "category", "source", "pass_rate_7b", "pass_rate_32b")}
    wanted = {"qid": "q-0", "category": "Spatial Reasoning", "source": "Processed"}
    assert extra == wanted | {"pass_rate_7b": 0.25, "pass_rate_32b": 1.0}
    source = prepared.manifest["sources"][0]
    assert source["pass_rate_column"] == "PassRate_7BBase"
    assert source["licence"].startswith("MIT")
    everything = prepare(["virl39k"], tmp_path / "all", options=options)
    assert everything.rows == {"train": 6}
    assert [p.extra["pass_rate_7b"] for p in load_problems(tmp_path / "all")] == [0.25, 0.5, 0.5, 1.0, None, 0.5]


def test_an_unpacked_folder_gives_the_same_bytes_as_the_archive(virl: Path, tmp_path: Path) -> None:
    def written(name: str) -> dict[str, bytes]:
        prepare(["virl39k"], tmp_path / name, options=SourceOptions(from_path=virl), held_out=2)
        files = [file for file in (tmp_path / name).rglob("*") if file.is_file()]
        return {str(file.relative_to(tmp_path / name)): file.read_bytes() for file in files}

    first = written("one")
    zipfile.ZipFile(virl / "images.zip").extractall(virl)
    (virl / "images.zip").unlink()
    assert written("two") == first


def geo_rows(numbers: range, picture: bytes) -> list[dict[str, Any]]:
    return [
        {"images": [{"bytes": picture, "path": None}], "problem": f"<image>Find x{n}.", "answer": n} for n in numbers
    ]


def test_geometry3k_as_it_is_published(tmp_path: Path) -> None:
    folder = tmp_path / "geometry3k/data"
    folder.mkdir(parents=True)
    parquet(folder / "train-00000-of-00001.parquet", [*geo_rows(range(5), A), *geo_rows(range(4, 6), B)])
    parquet(folder / "validation-00000-of-00001.parquet", geo_rows(range(3, 5), B))
    parquet(folder / "test-00000-of-00001.parquet", geo_rows(range(2), A))
    prepared = prepare(["geo3k"], tmp_path / "out", options=SourceOptions(from_path=tmp_path / "geometry3k"))
    assert prepared.rows == {"train": 4, "validation": 2, "test": 2}
    # x0 and x1 under picture A are test questions, x4 under B is a validation question; x3 under A is neither.
    assert left_out(prepared) == {"in_test_split": 2, "in_validation_split": 1}
    assert [
        (p.answer, c) for p, c in zip(load_problems(tmp_path / "out"), contents(tmp_path / "out"), strict=True)
    ] == [
        ("2", [A]),
        ("3", [A]),
        ("4", [A]),
        ("5", [B]),
    ]
    assert load_problems(tmp_path / "out")[0].data_source == "hiyouga/geometry3k"
    assert prepared.manifest["images"]["files"] == 2


def test_the_same_words_under_another_picture_are_another_question(tmp_path: Path) -> None:
    for name, content in (("a.png", A), ("copy.png", A), ("b.png", B)):
        (tmp_path / name).write_bytes(content)

    def row(image: Any, answer: int, question: str = "How many?") -> dict[str, Any]:
        return {"question": question, "answer": answer, "image": image}

    rows = [
        row("a.png", 1),
        row("b.png", 1),
        row("copy.png", 1),
        row("a.png", 2, "<image> how  many"),
        row(["a.png", "b.png"], 1),
        row(["b.png", "a.png"], 1),
        row(None, 1),
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepared = prepare([str(tmp_path / "mine.jsonl")], tmp_path / "out")
    assert left_out(prepared) == {"duplicate": 1, "conflicting_answer": 1}
    assert contents(tmp_path / "out") == [[A], [B], [A, B], [B, A], []]
    assert prepared.manifest["images"] == {
        "stored_as": "relative",
        "used": 6,
        "files": 2,
        "bytes": len(A) + len(B),
        "animated": 0,
        "resized": 0,
    }


def test_held_out_questions_are_found_by_their_pictures(tmp_path: Path) -> None:
    for name, pictures in (("one", (A, B)), ("two", (B, C))):
        rows = [{"question": "How many?", "answer": "1", "image": {"bytes": picture}} for picture in pictures]
        prepare(
            [parquet(tmp_path / f"{name}.parquet", rows)],
            tmp_path / name,
            images="bytes" if name == "one" else "relative",
        )
    one, two = load_problems(tmp_path / "one"), load_problems(tmp_path / "two")
    assert (held_out_warning(one, two, "a", "b") or "").startswith("1 of the 2 held-out questions")
    assert held_out_warning(one[:1], two, "a", "b") is None
    assert (held_out_warning(two, two, "a", "b") or "").startswith("all 2 held-out questions")


def test_pictures_of_rows_that_are_not_used_are_not_kept(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}?", "answer": 1, "image": {"bytes": picture}} for n, picture in enumerate((A, B, C))]
    source = parquet(tmp_path / "mine.parquet", rows)
    prepare([source], tmp_path / "out", limit=1)
    assert [file.read_bytes() for file in (tmp_path / "out/images").rglob("*.png")] == [A]


def test_bytes_stand_in_row_groups_of_some_megabytes(tmp_path: Path) -> None:
    pictures = [encoded(noise(600, 600), "BMP") for _ in range(12)]  # 1.08 MB each
    rows = [{"question": f"q{n}?", "answer": n, "image": {"bytes": picture}} for n, picture in enumerate(pictures)]
    prepare([parquet(tmp_path / "mine.parquet", rows)], tmp_path / "out", images="bytes")
    with pyarrow.parquet.ParquetFile(tmp_path / "out/train.parquet") as written:
        groups = [written.metadata.row_group(n).num_rows for n in range(written.num_row_groups)]
    assert groups == [4, 4, 4]
    assert contents(tmp_path / "out") == [[picture] for picture in pictures]
    problems = load_problems(tmp_path / "out")
    assert [(image.row_group, image.row) for p in problems for image in p.images if isinstance(image, StoredImage)] == [
        (n // 4, n % 4) for n in range(12)
    ]
    assert len({image.name for problem in problems for image in problem.images}) == 12
    with pytest.raises(UsageError, match=r"image 0 of row 7 of row group 0 of .* cannot be read"):
        StoredImage(tmp_path / "out/train.parquet", 0, 7, 0).load()
    with pytest.raises(UsageError, match=r"row group 9 of .* cannot be read"):
        StoredImage(tmp_path / "out/train.parquet", 9, 0, 0).load()


CELLS: dict[str, Any] = {
    "bytes": A,
    "an object with bytes": {"bytes": A, "path": "x.png"},
    "a list of objects": [{"bytes": A, "path": None}],
    "base64": base64.b64encode(A).decode(),
    "a data address": "data:image/png;base64," + base64.b64encode(A).decode(),
    "a path": "a.png",
    "an object with a path": {"path": "a.png"},
    "verl's object": {"image": "a.png"},
    "a file address": "file://a.png",
    "a list": ["a.png"],
}


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_of_every_kind(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(A)
    source = parquet(tmp_path / "mine.parquet", [{"question": "q?", "answer": "1", "image": CELLS[kind]}])
    assert prepare([source], tmp_path / "out").rows == {"train": 1}
    assert contents(tmp_path / "out") == [[A]]


def test_images_of_numbered_columns_of_messages_and_of_a_named_column(tmp_path: Path) -> None:
    for name, content in (("a.png", A), ("b.png", B), ("c.png", C)):
        (tmp_path / name).write_bytes(content)
    parts = [
        {"type": "text", "text": "Is "},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "text", "text": " like "},
        {"type": "image", "image": "b.png"},
        {"type": "text", "text": "?"},
    ]
    rows: list[Mapping[str, Any]] = [
        {"question": "numbered?", "answer": "1", "image_10": "c.png", "image_2": "b.png", "image_1": "a.png"},
        {"question": "See <image 2> and <image 1>.", "answer": "1", "image_1": "a.png", "image_2": "b.png"},
        {"question": [{"role": "user", "content": parts}], "answer": "1"},
        {
            "question": "plain goes first?",
            "answer": "1",
            "image": "a.png",
            "image_path": "b.png",
            "decoded_image": "c.png",
        },
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepared = prepare([str(tmp_path / "mine.jsonl")], tmp_path / "out")
    assert left_out(prepared) == {}
    assert contents(tmp_path / "out") == [[A, B, C], [B, A], [A, B], [A]]
    assert [problem.prompt[-1].content for problem in load_problems(tmp_path / "out")] == [
        "<image><image><image>numbered?",
        "See <image> and <image>.",
        "Is <image> like <image>?",
        "<image>plain goes first?",
    ]
    options = SourceOptions(image_columns=("decoded_image",))
    row = rows[3] | {"figure": {"inner": "b.png"}}  # type: ignore[operator]
    (tmp_path / "one.jsonl").write_text(json.dumps(row))
    prepare([str(tmp_path / "one.jsonl")], tmp_path / "named", options=options)
    assert contents(tmp_path / "named") == [[C]]
    prepare([str(tmp_path / "one.jsonl")], tmp_path / "dotted", options=SourceOptions(image_columns=("figure.inner",)))
    assert contents(tmp_path / "dotted") == [[B]]


def test_images_of_the_hub_come_undecoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Image feature holds PIL images for its readers; what was stored is taken, byte for byte."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "problem": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "images": datasets.Sequence(datasets.Image()),
        }
    )
    table = datasets.Dataset.from_list(
        [
            {"problem": f"<image>q{n}?", "answer": str(n), "images": [{"bytes": picture, "path": None}]}
            for n, picture in enumerate((A, B, C))
        ],
        features=features,
    )
    asked: list[tuple[Any, ...]] = []

    def load(hub_id: str, config: str | None, **options: Any) -> Any:
        asked.append((hub_id, config, options))
        return datasets.DatasetDict(train=table)

    monkeypatch.setattr(datasets, "load_dataset", load)
    prepare(["geo3k"], tmp_path / "out")
    assert asked == [("hiyouga/geometry3k", None, {"revision": None})]
    assert contents(tmp_path / "out") == [[A], [B], [C]]


def test_the_hubs_virl39k_comes_with_its_archive(virl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    import huggingface_hub

    asked: list[Any] = []

    def load(hub_id: str, config: str | None, **options: Any) -> Any:
        asked.append((hub_id, config, options))
        rows = pyarrow.parquet.read_table(virl / "39Krelease.parquet")
        return datasets.DatasetDict(train=datasets.Dataset(rows))

    def download(hub_id: str, name: str, **options: Any) -> str:
        asked.append((hub_id, name, options))
        return str(virl / name)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    prepared = prepare(["virl39k"], tmp_path / "out", options=SourceOptions(revision="ab12"))
    assert prepared.rows == {"train": 6}
    assert asked == [
        ("TIGER-Lab/ViRL39K", None, {"revision": "ab12", "data_files": "*.parquet"}),
        ("TIGER-Lab/ViRL39K", "images.zip", {"repo_type": "dataset", "revision": "ab12"}),
    ]


@pytest.mark.parametrize("stored_as", ["relative", "bytes"])
def test_a_large_row_group_of_pictures_is_prepared_in_bounded_memory(stored_as: str, tmp_path: Path) -> None:
    """300 MB of pictures in one row group, as some publish them: their reader must not hold them."""

    def picture() -> bytes:
        return encoded(Image.frombytes("RGB", (500, 500), os.urandom(750_000)), "BMP")

    rows = [{"question": f"q{n}?", "answer": str(n), "image": {"bytes": picture(), "path": None}} for n in range(400)]
    source = tmp_path / "mine.parquet"
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, source, use_dictionary=False, write_batch_size=8)  # pages of some megabytes
    code = textwrap.dedent(
        f"""
        from pathlib import Path
        from luspo_cli.data.prepare import prepare
        from luspo_cli.data.problems import load_problems
        from luspo_cli.data import image_store, images

        def peak():  # of this process alone, in MiB
            status = Path("/proc/self/status").read_text()
            return int(status.partition("VmHWM:")[2].split()[0]) // 1024

        before = peak()
        prepare([{str(source)!r}], Path({str(tmp_path / "out")!r}), images={stored_as!r})
        problems = load_problems({str(tmp_path / "out")!r})
        print(peak() - before, len(problems))
        """
    )
    if not Path("/proc/self/status").is_file():
        pytest.skip("needs /proc")
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    grown, loaded = map(int, done.stdout.split())
    assert loaded == 400
    assert grown < 200, grown


def test_what_datasets_saved_is_read_as_its_parquet_is(tmp_path: Path) -> None:
    """A file, a stream, one set and a set of splits; neither its descriptions nor what was cached beside it are data."""
    datasets = pytest.importorskip("datasets")
    rows = [
        {"question": f"q{n}?", "answer": "1", "image": {"bytes": image, "path": None}} for n, image in enumerate((A, B))
    ]
    parquet(tmp_path / "x.parquet", rows)
    table = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "x.feather")
    with pyarrow.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    whole = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    whole.save_to_disk(str(tmp_path / "one"))
    (tmp_path / "one/cache-0.arrow").write_bytes((tmp_path / "x.arrow").read_bytes())
    datasets.DatasetDict(train=whole, test=whole.select([0])).save_to_disk(str(tmp_path / "two"))
    for name in ("x.parquet", "x.feather", "x.arrow", "one", "two"):
        prepared = prepare([str(tmp_path / name)], tmp_path / f"out-{name}", splits=["train"])
        assert contents(tmp_path / f"out-{name}") == [[A], [B]]
        assert prepared.manifest["splits"]["train"]["rows_read"] == 2
    assert prepare([str(tmp_path / "two")], tmp_path / "both").rows == {"train": 1, "test": 1}
    (tmp_path / "broken.arrow").write_bytes(b"ARROW1 and no more")
    with pytest.raises(UsageError, match=r"cannot be read as Arrow .*to_parquet"):
        prepare([str(tmp_path / "broken.arrow")], tmp_path / "none")
