"""Images out of archives: found as the rows name them, and nothing else of an archive reaches the disk."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from doubles.hostile_images import encoded, noise
from luspo_cli.commands.prepare_data import _summary
from luspo_cli.data import archives
from luspo_cli.data.archives import ImagePlaces
from luspo_cli.data.columns import SourceOptions
from luspo_cli.data.left_out import LeftOut, UnusableImage
from luspo_cli.data.prepare import prepare
from luspo_cli.data.problems import load_problems
from luspo_cli.errors import UsageError

A, B = encoded(noise(20, 30)), encoded(noise(30, 20), "JPEG")


def make_zip(file: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def make_tar(file: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(file, "w:gz" if file.suffix in (".gz", ".tgz") else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


MAKERS: dict[str, Callable[[Path, Mapping[str, bytes]], Path]] = {
    "images.zip": make_zip,
    "images.tar": make_tar,
    "images.tar.gz": make_tar,
    "images.tgz": make_tar,
}


def rows(folder: Path, *images: Any) -> str:
    lines = [json.dumps({"question": f"q{n}?", "answer": "1", "image": image}) for n, image in enumerate(images)]
    (folder / "mine.jsonl").write_text("\n".join(lines))
    return str(folder / "mine.jsonl")


def reason(places: ImagePlaces, path: str, scratch: Path) -> LeftOut:
    with pytest.raises(UnusableImage) as caught:
        places.read(path, scratch)
    assert "\n" not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("name", MAKERS)
def test_images_are_found_beside_the_data_and_where_it_is_said(name: str, tmp_path: Path) -> None:
    """With and without the folder `images` inside, beside the table under its usual name or elsewhere under any."""
    (tmp_path / "beside").mkdir()
    for number, prefix in enumerate(("images/", "", "./images/")):
        members = {f"{prefix}a.png": A, f"{prefix}deep/b.jpg": B, f"{prefix}unused.png": b"never read"}
        MAKERS[name](tmp_path / "beside" / name, members)
        source = rows(tmp_path / "beside", "images/a.png", "images/deep/b.jpg", "images/a.png")
        out = tmp_path / f"out{number}"
        assert prepare([source], out).rows == {"train": 3}
        contents = sorted(file.read_bytes() for file in (out / "images").rglob("*") if file.is_file())
        assert contents == sorted([A, B])
        assert {file.name for file in out.iterdir()} == {"images", "train.parquet", "manifest.json"}
    (tmp_path / "else").mkdir()
    elsewhere = MAKERS[name](tmp_path / f"other_{name}", {"images/a.png": A})
    source = rows(tmp_path / "else", "images/a.png")
    with pytest.raises(UsageError, match=r"1 image missing.*where --images-from says"):
        prepare([source], tmp_path / "none")
    assert prepare([source], tmp_path / "given", options=SourceOptions(images_from=(elsewhere,))).rows == {"train": 1}


@pytest.mark.parametrize("name", MAKERS)
def test_members_that_lead_out_are_no_members(name: str, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    names = ("../../escaped.png", "/absolute.png", "a/../../up.png", "a/../inside.png")
    places = ImagePlaces([MAKERS[name](tmp_path / name, dict.fromkeys(names, A))])
    for path in ("../../escaped.png", "/absolute.png", "absolute.png", "up.png", "../up.png"):
        assert reason(places, path, scratch) is LeftOut.IMAGE_MISSING
    assert places.read("inside.png", scratch) == A
    assert {path.name for path in tmp_path.iterdir()} <= {name, "scratch"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_devices_and_folders_of_a_tar_are_no_members(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    assert reason(ImagePlaces([tmp_path / "a.tar"]), "a.png", tmp_path) is LeftOut.IMAGE_MISSING


def test_a_link_of_a_zip_is_no_member(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("a.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    assert reason(ImagePlaces([tmp_path / "a.zip"]), "a.png", tmp_path) is LeftOut.IMAGE_MISSING


def test_a_member_is_bounded_whatever_it_unpacks_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_zip(tmp_path / "a.zip", {"bomb.png": bytes(3 * 2**20), "a.png": A})
    assert (tmp_path / "a.zip").stat().st_size < 20_000
    monkeypatch.setattr(archives, "MOST_BYTES", 2**20)
    places = ImagePlaces([tmp_path / "a.zip"])
    assert reason(places, "bomb.png", tmp_path) is LeftOut.IMAGE_TOO_LARGE
    assert places.read("a.png", tmp_path) == A


def test_a_member_whose_header_lies_about_its_size_is_bounded_and_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header that promises a few bytes: what comes is counted, and the reason is one of an image's."""
    make_zip(tmp_path / "a.zip", {"bomb.png": bytes(3 * 2**20)})
    whole = (tmp_path / "a.zip").read_bytes()
    size = (3 * 2**20).to_bytes(4, "little")
    assert whole.count(size) >= 1
    (tmp_path / "a.zip").write_bytes(whole.replace(size, (10).to_bytes(4, "little")))
    monkeypatch.setattr(archives, "MOST_BYTES", 2**20)
    assert reason(ImagePlaces([tmp_path / "a.zip"]), "bomb.png", tmp_path) is LeftOut.IMAGE_UNREADABLE


@pytest.mark.parametrize("name", MAKERS)
def test_an_archive_that_grows_beyond_all_measure_ends_with_a_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "images.tar":
        pytest.skip("nothing in it is compressed")
    monkeypatch.setattr(archives, "_FREE_GROWTH", 2**20)
    names = [f"images/{n}.bmp" for n in range(40)]
    MAKERS[name](tmp_path / name, dict.fromkeys(names, bytes(2**20)))
    with pytest.raises(UsageError, match=r"unpacks to more than 100 times its own size.*unpack it yourself"):
        prepare([rows(tmp_path, *names)], tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {name, "mine.jsonl"}


def test_too_many_members_end_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_MEMBERS", 10)
    for name, make in MAKERS.items():
        make(tmp_path / name, {f"{n}.png": A for n in range(12)})
        with pytest.raises(UsageError, match="more than 10 members"):
            ImagePlaces([tmp_path / name]).read("3.png", tmp_path / "scratch")


def test_damaged_members_and_archives(tmp_path: Path) -> None:
    file = make_zip(tmp_path / "a.zip", {"a.png": A, "b.jpg": B})
    content = bytearray(file.read_bytes())
    content[60:90] = bytes(30)  # inside the first member
    file.write_bytes(content)
    places = ImagePlaces([file])
    assert reason(places, "a.png", tmp_path) is LeftOut.IMAGE_UNREADABLE
    assert places.read("b.jpg", tmp_path) == B
    locked = make_zip(tmp_path / "locked.zip", {"a.png": A})
    content = bytearray(locked.read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(signature) + flags] |= 1  # the flag of an encrypted member
    locked.write_bytes(content)
    assert reason(ImagePlaces([locked]), "a.png", tmp_path) is LeftOut.IMAGE_UNREADABLE
    for name, broken in (("b.zip", A), ("b.tar", A), ("b.tar.gz", gzip.compress(A)), ("c.tar.gz", A)):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(UsageError, match=rf"{name} cannot be read as an archive"):
            ImagePlaces([tmp_path / name]).read("a.png", tmp_path / "scratch")
    cut = make_tar(tmp_path / "cut.tar.gz", {f"{n}.png": os.urandom(9000) for n in range(9)})
    cut.write_bytes(cut.read_bytes()[:20_000])
    with pytest.raises(UsageError, match=r"cut\.tar\.gz cannot be read as an archive"):
        ImagePlaces([cut]).read("0.png", tmp_path / "scratch")


def published(folder: Path, images: Mapping[str, bytes]) -> dict[str, bytes]:
    """What ViRL39K's folder holds, by name: its table, of a row for each image, and the images."""
    rows = [
        {"question": f"<image>q{n}?", "answer": r"\boxed{1}", "PassRate_7BBase": 0.5, "qid": f"q{n}", "image": [name]}
        for n, name in enumerate(images)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "39Krelease.parquet")
    return {"39Krelease.parquet": (folder / "39Krelease.parquet").read_bytes(), **images}


def written(out: Path) -> list[bytes]:
    return sorted(file.read_bytes() for file in (out / "images").rglob("*") if file.is_file())


@pytest.mark.parametrize("name", MAKERS)
def test_an_archive_of_images_stands_for_the_table_beside_it(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    published(folder, {"images/a.png": A, "images/b.jpg": B})
    archive = MAKERS[name](folder / f"virl_{name}", {"images/a.png": A, "images/b.jpg": B})
    for number, given in enumerate((archive, folder)):  # the only archive of the folder, whatever it is called
        prepared = prepare(["virl39k"], tmp_path / f"out{number}", options=SourceOptions(from_path=given))
        assert prepared.rows == {"train": 2}
        assert written(tmp_path / f"out{number}") == sorted([A, B])
        assert [file["name"] for file in prepared.manifest["sources"][0]["files"]] == ["39Krelease.parquet"]


@pytest.mark.parametrize("name", MAKERS)
def test_an_archive_may_hold_the_table_and_the_images(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the folder around them or without, and with what macOS adds to its archives."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    whole = published(tmp_path, {"images/a.png": A, "images/b.jpg": B})
    mac = {"__MACOSX/ViRL39K/._39Krelease.parquet": b"?", "ViRL39K/._39Krelease.parquet": b"?"}
    for number, members in enumerate((whole, {f"ViRL39K/{name}": content for name, content in whole.items()} | mac)):
        archive = MAKERS[name](tmp_path / f"all_{name}", members)
        prepared = prepare(["virl39k"], tmp_path / f"out{number}", options=SourceOptions(from_path=archive))
        assert prepared.rows == {"train": 2}
        assert written(tmp_path / f"out{number}") == sorted([A, B])
        files = prepared.manifest["sources"][0]["files"]
        assert files == [{"name": f"all_{name}", "sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}]
        own = prepare([str(archive)], tmp_path / f"own{number}")
        assert own.rows == {"train": 2}
        assert own.manifest["sources"][0]["data_source"] == "all_images"
    assert list(scratch.iterdir()) == []


def test_geometry3k_out_of_an_archive_keeps_its_splits(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for split in ("train", "validation", "test"):
        row = {"images": [{"bytes": A, "path": None}], "problem": f"<image>{split}?", "answer": "1"}
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "x.parquet")
        members[f"geometry3k/data/{split}-00000-of-00001.parquet"] = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").unlink()
    archive = make_tar(tmp_path / "geo.tgz", members | {"geometry3k/README.md": b"read me"})
    prepared = prepare(["geo3k"], tmp_path / "out", options=SourceOptions(from_path=archive))
    assert prepared.rows == {"train": 1, "validation": 1, "test": 1}


@pytest.mark.parametrize("name", MAKERS)
def test_tables_of_an_archive_stay_inside_their_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = dict.fromkeys(("../out.jsonl", "/absolute.jsonl", "a/../../up.csv", "images/a.png"), b"{}")
    found = archives.unpacked_tables(MAKERS[name](tmp_path / name, members), (".jsonl", ".csv"))
    assert found is None
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if name == "images.tar":
        return  # nothing in it is compressed
    monkeypatch.setattr(archives, "_FREE_GROWTH", 2**20)
    bomb = MAKERS[name](tmp_path / f"bomb_{name}", {f"{n}.csv": bytes(2**20) for n in range(40)})
    with pytest.raises(UsageError, match="unpacks to more than 100 times its own size"):
        archives.unpacked_tables(bomb, (".csv",))


@pytest.mark.parametrize("name", MAKERS)
def test_only_an_archive_of_images_stands_for_the_data_beside_it(name: str, tmp_path: Path) -> None:
    """An image is known by its name or by its first bytes; an archive without any says nothing of the files beside it."""
    rows(tmp_path, "a")
    for number, members in enumerate(({}, {"readme.txt": b"read me"}, {".hidden.csv": b"q,a"})):
        (tmp_path / name).unlink(missing_ok=True)
        with pytest.raises(UsageError, match=r"holds neither data files .* nor images"):
            prepare([str(MAKERS[name](tmp_path / name, members))], tmp_path / f"none{number}")
    for number, image in enumerate(("a.png", "a")):
        (tmp_path / name).unlink()
        rows(tmp_path, image)
        given = MAKERS[name](tmp_path / name, {"readme.txt": b"read me", image: A})
        prepared = prepare([str(given)], tmp_path / f"out{number}")
        assert prepared.rows == {"train": 1}
        assert written(tmp_path / f"out{number}") == [A]
        assert prepared.manifest["sources"][0]["read_beside_archive"] == ["mine.jsonl"]
        assert any("its rows are those of mine.jsonl beside it" in line for line in _summary(prepared))


@pytest.mark.parametrize("packed", [*MAKERS, "folder"])
def test_a_file_of_one_row_has_the_image_of_its_own_name(packed: str, tmp_path: Path) -> None:
    """As WebDataset lays them out; a file of several rows has none, and images that no row names are counted."""
    members = {f"set/{n:04}.json": json.dumps({"question": f"q{n}?", "answer": "1"}).encode() for n in range(3)}
    members |= {"set/0000.png": A, "set/0001.jpg": B}
    if packed == "folder":
        given = tmp_path / "set"
        given.mkdir()
        for name, content in members.items():
            (tmp_path / name).write_bytes(content)
    else:
        given = MAKERS[packed](tmp_path / packed, members)
    prepared = prepare([str(given)], tmp_path / "out")
    assert [len(problem.images) for problem in load_problems(tmp_path / "out")] == [1, 1, 0]
    assert sorted(written(tmp_path / "out")) == sorted([A, B])
    if packed == "folder":
        return
    several = json.dumps([{"question": f"q{n}?", "answer": "1"} for n in range(3)]).encode()
    given = MAKERS[packed](tmp_path / packed, {"0000.json": several, "0000.png": A})
    prepared = prepare([str(given)], tmp_path / "text")
    assert prepared.manifest["images"]["used"] == 0
    assert any("holds 1 image files, and no row" in line for line in _summary(prepared))


def test_a_snapshot_of_the_hubs_cache_is_a_folder_like_others(tmp_path: Path) -> None:
    """Its files are links to blobs beside the snapshots; a link to anywhere else leads out."""
    cache = tmp_path / "datasets--owner--name"
    snapshot = cache / "snapshots/0123abc"
    (snapshot / "images").mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs/b1").write_bytes(A)
    (tmp_path / "secret.png").write_bytes(B)
    (snapshot / "images/a.png").symlink_to("../../../blobs/b1")
    (snapshot / "images/b.png").symlink_to(tmp_path / "secret.png")
    source = rows(snapshot, "images/a.png", "images/b.png")
    prepared = prepare([source], tmp_path / "out")
    assert prepared.rows == {"train": 1}
    assert written(tmp_path / "out") == [A]
    assert prepared.manifest["splits"]["train"]["left_out"]["image_outside_folder"] == 1
