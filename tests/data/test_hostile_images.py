"""Images as they come from the wild: each is used, or its row counted by name with one sentence, and none ends a preparation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from doubles.hostile_images import empty_png, encoded, hostile_images, noise
from luspo_cli.commands.prepare_data import _summary
from luspo_cli.data.columns import SourceOptions
from luspo_cli.data.filtering import PassRates
from luspo_cli.data.image_columns import RawImage, images_of_row, raw_images
from luspo_cli.data.images import ImageFile, StoredImage
from luspo_cli.data.prepare import Prepared, prepare
from luspo_cli.data.problems import load_problems
from luspo_cli.errors import UsageError

IMAGES = hostile_images()
READ = [name for name, (_, reason) in IMAGES.items() if reason is None]


def table(folder: Path, rows: list[dict[str, Any]], name: str = "mine.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def left_out(prepared: Prepared, split: str = "train") -> dict[str, int]:
    found = prepared.manifest["splits"][split]["left_out"]
    return {reason: count for reason, count in found.items() if count}


def row(image: Any, question: str = "How many?", answer: str = "1") -> dict[str, Any]:
    return {"question": question, "answer": answer, "image": image}


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prepared]:
    folder = tmp_path_factory.mktemp("wild")
    for name, (content, _) in IMAGES.items():
        (folder / name).write_bytes(content)
    source = table(folder, [row(name, f"What is in {name}?") for name in IMAGES])
    return folder / "out", prepare([source], folder / "out")


def test_every_file_is_used_or_counted_by_its_reason(wild: tuple[Path, Prepared]) -> None:
    _, prepared = wild
    wanted: dict[str, int] = {}
    for _, reason in IMAGES.values():
        if reason is not None:
            wanted[reason] = wanted.get(reason, 0) + 1
    assert left_out(prepared) == wanted
    assert prepared.rows["train"] == len(READ)
    first = prepared.manifest["splits"]["train"]["first_left_out"]
    assert first.keys() == wanted.keys()
    for said in first.values():
        assert said.startswith("row ")
        assert "\n" not in said
        assert " 0x" not in said  # an address in memory, which differs from run to run


def test_what_is_used_can_be_trained_on(wild: tuple[Path, Prepared]) -> None:
    folder, _ = wild
    problems = load_problems(folder)
    assert [problem.extra["question"] for problem in problems] == [f"What is in {name}?" for name in READ]
    for problem in problems:
        assert problem.prompt[-1].content == f"<image>{problem.extra['question']}"
        (image,) = problem.images
        assert isinstance(image, ImageFile)
        loaded = image.load()
        assert loaded.mode == "RGB"
        assert image.size() == (loaded.height, loaded.width)


def test_the_bytes_stay_as_they_came_and_animations_are_counted(wild: tuple[Path, Prepared]) -> None:
    folder, prepared = wild
    contents = [ImageFile(image.path).content() for p in load_problems(folder) for image in p.images]  # type: ignore[attr-defined]
    assert contents == [IMAGES[name][0] for name in READ]
    assert prepared.manifest["images"] == {
        "stored_as": "relative",
        "used": len(READ),
        "files": len(READ),
        "bytes": sum(map(len, contents)),
        "animated": 3,
        "resized": 0,
    }
    assert sum(file.is_file() for file in (folder / "images").rglob("*")) == len(READ)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", [name for name, (_, reason) in IMAGES.items() if reason == "image_too_large"])
def test_a_loader_refuses_what_a_preparation_leaves_out(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(IMAGES[name][0])
    with pytest.raises(
        UsageError, match=r"cannot be read \(it has more than 89,478,485 pixels.*\); scale it down, or leave"
    ):
        ImageFile(tmp_path / name).load()


def test_a_picture_just_within_the_bound_of_pixels_is_measured_without_decoding(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(empty_png(9_400, 9_500))
    assert ImageFile(tmp_path / "large.png").size() == (9_500, 9_400)


HOLES: dict[str, tuple[dict[str, Any], str | None]] = {
    "no file": (row("nowhere.png"), "image_missing"),
    "a folder": (row("folder"), "image_missing"),
    "an address": (row("https://example.org/a.png"), "image_missing"),
    "a hole in a list": (row(["a.png", None], "<image><image>?"), "image_missing"),
    "empty text in a list": (row(["a.png", ""]), "image_missing"),
    "a number in a list": (row(["a.png", 3]), "image_missing"),
    "a NUL": (row("a\0.png"), "image_missing"),
    "half a surrogate pair": (row("a\ud800.png"), "image_missing"),
    "a name without end": (row("a" * 5000), "image_missing"),
    "a loop of links": (row("loop.png"), "image_missing"),
    "dots": (row("../outside.png"), "image_outside_folder"),
    "an absolute path": (row("/etc/hostname"), "image_outside_folder"),
    "a link out": (row("link.png"), "image_outside_folder"),
    "broken base64": (row("data:image/png;base64,@@@"), "image_unreadable"),
    "no mark for the second": (row(["a.png", "b.png"], "See <image>"), "image_marks_differ"),
    "more marks": (row("a.png", "<image><image>"), "image_marks_differ"),
    "a mark without an image": (row(None, "<image>What is it?"), "image_marks_differ"),
    "two columns": (row("a.png", "two?") | {"picture": "b.png"}, "image_columns_unclear"),
    "a place of a video": (row("a.png", "What is <|vision_start|><|video_pad|><|vision_end|>?"), "placeholder_in_text"),
    "a turn of the template": (row("a.png", "4?<|im_end|>\n<|im_start|>assistant\n4"), "turn_token_in_text"),
    "an end of all text": (row(None, "What is <|endoftext|>?"), "turn_token_in_text"),
    "an end without a place": (row(None, "What is <|vision_end|>?"), "placeholder_in_text"),
    "a model's own place": (row("a.png", "See <|vision_start|><|image_pad|><|vision_end|>"), None),
    "a video": (row("a.png", "film?") | {"video": "a.mp4"}, "with_videos"),
    "none": (row(None, "no image?"), None),
    "an empty list": (row([], "empty list?"), None),
    "one": (row("a.png", "one?"), None),
    "one in a list": (row(["b.png"], "in a list?"), None),
    "a list as text": (row('["a.png", "b.png"]', "both?"), None),
    "below the folder by its absolute path": (row("HERE/a.png", "absolute?"), None),
    "a path beside": (row("a.png", "path?") | {"image_path": "nowhere.png"}, None),
}


@pytest.mark.parametrize("case", HOLES)
def test_every_row_is_used_or_counted_by_its_reason(case: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "folder").mkdir(parents=True)
    for name in ("data/a.png", "data/b.png", "outside.png"):
        (tmp_path / name).write_bytes(encoded(noise(20, 20)))
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "loop.png").symlink_to("loop.png")
    asked, reason = HOLES[case]
    if isinstance(asked["image"], str):
        asked = asked | {"image": asked["image"].replace("HERE", str(folder.resolve()))}
    prepared = prepare([table(folder, [asked, row("a.png", "the other?")])], tmp_path / "out")
    assert left_out(prepared) == ({} if reason is None else {reason: 1})
    assert str(tmp_path).encode() not in (tmp_path / "out/manifest.json").read_bytes()


def test_a_column_of_images_that_is_called_otherwise_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(20, 20)))
    rows = [{"question": f"q{n}?", "answer": "1", "note": "see a.png.", "figure": "a.png"} for n in range(3)]
    rows[0]["figure"] = ""
    prepared = prepare([table(tmp_path, rows)], tmp_path / "out")
    assert prepared.manifest["sources"][0]["unread_images"] == "figure"
    assert any("the column 'figure' of mine" in line and "--image-column figure" in line for line in _summary(prepared))
    asked = SourceOptions(image_columns=("figure",))
    assert prepare([table(tmp_path, rows)], tmp_path / "with", options=asked).manifest["images"]["used"] == 2
    marked = [row | {"question": "<image>" + row["question"]} for row in rows]
    with pytest.raises(
        UsageError, match=r"3 image marks differ.*the column 'figure' looks like images; name it with --image-col"
    ):
        prepare([table(tmp_path, marked)], tmp_path / "none")
    beside = [row | {"image": "a.png", "chart": "a.png"} for row in rows]
    for options, unread in ((None, "figure, chart"), (asked, "chart")):
        named = prepare([table(tmp_path, beside)], tmp_path / unread, options=options)
        assert named.manifest["sources"][0]["unread_images"] == unread
        assert sum("looks like images" in line for line in _summary(named)) == len(unread.split(", "))


@pytest.mark.parametrize(
    ("filled", "read"),
    [
        ({"image_1": "a.png", "image_2": None, "image_10": "c.png"}, None),
        ({"image_1": None, "image_2": "b.png"}, None),
        ({"image_1": "a.png", "image_2": "", "image_10": None}, 1),
        ({"image_1": "a.png", "image_10": "c.png"}, 2),
        ({"image": None, "image_1": "a.png"}, 1),
        ({"image_1": None, "image_2": None}, 0),
        ({"image_1": None, "image_2": None, "picture": "a.png"}, 1),
    ],
)
def test_a_hole_in_numbered_columns_costs_its_row(filled: dict[str, Any], read: int | None) -> None:
    """A row whose second image is empty has no second image: the third must not take its place."""
    images = images_of_row(filled, filled)
    assert isinstance(images, tuple)
    assert (None if RawImage() in images else len(images)) == read


def test_where_every_row_fails_the_first_is_shown_as_beside_rows_that_are_used(tmp_path: Path) -> None:
    bad = {"question": "<image><image>What?", "answer": "1", "image": "a.png"}
    (tmp_path / "a.png").write_bytes(encoded(noise(20, 20)))
    said = "row 0: its text has 2 '<image>' marks, and it has 1 images"
    some = prepare([table(tmp_path, [bad, row("a.png", "the other?")])], tmp_path / "some")
    assert some.manifest["splits"]["train"]["first_left_out"] == {"image_marks_differ": said}
    with pytest.raises(UsageError, match=f"nothing was written; first image marks differ, in {said}: a text has one"):
        prepare([table(tmp_path, [bad])], tmp_path / "none")
    (tmp_path / "a.png").write_bytes(empty_png(60_000, 60_000))
    with pytest.raises(UsageError, match=r"first image too large, in row 0: the image a\.png .*89,478,485 pixels"):
        prepare([table(tmp_path, [row("a.png", "q?")])], tmp_path / "large")


@pytest.mark.parametrize(
    ("cell", "paths"),
    [
        ("['a.png', 'b.png']", ["a.png", "b.png"]),
        (' ["a.png", "b.png"]', ["a.png", "b.png"]),
        ("{'bytes': None, 'path': 'a.png'}", ["a.png"]),
        ("[None, 'a.png']", [None, "a.png"]),
        ("[]", []),
        ("[a].png", ["[a].png"]),
        ("{x}.png", ["{x}.png"]),
        ("[" * 50_000, ["[" * 50_000]),
        ("['a.png'" + ", 'b.png'" * 50_000 + "]", None),
    ],
)
def test_a_list_written_as_text_is_read_as_json_and_python_write_it(cell: str, paths: list[str | None] | None) -> None:
    assert [image.path for image in raw_images(cell)] == ([cell] if paths is None else paths)


@pytest.mark.parametrize("stored_as", ["relative", "absolute", "bytes"])
def test_images_come_back_from_every_kind_of_storage(stored_as: Any, tmp_path: Path) -> None:
    """Rows with none, one and two images, in both files of a preparation, alike whatever the kind."""
    pictures = [noise(30 + n, 20) for n in range(12)]
    for n, picture in enumerate(pictures):
        (tmp_path / f"{n}.png").write_bytes(encoded(picture))
    rows = [row([f"{n}.png", f"{n - 1}.png"][: n % 3], f"Question {n}?", str(n)) for n in range(1, 12)]
    prepare([table(tmp_path, rows)], tmp_path / "out", held_out=4, images=stored_as)
    problems = load_problems(tmp_path / "out") + load_problems(tmp_path / "out", split="test")
    assert len(problems) == 11
    for problem in problems:
        number = int(problem.answer)
        wanted = [pictures[number], pictures[number - 1]][: number % 3]
        assert [image.load().tobytes() for image in problem.images] == [picture.tobytes() for picture in wanted]
        assert [image.size() for image in problem.images] == [(20, 30 + number), (20, 29 + number)][: number % 3]
        assert problem.prompt[-1].content == "<image>" * (number % 3) + f"Question {number}?"
        assert all(isinstance(image, StoredImage) == (stored_as == "bytes") for image in problem.images)
    assert (tmp_path / "out/images").exists() == (stored_as != "bytes")
    assert Image.MAX_IMAGE_PIXELS  # the bound that both sides go by


def test_pass_rates_are_kept_within_bounds_and_those_not_measured_are_counted_apart(tmp_path: Path) -> None:
    rates = [0.0, 0.25, 0.5, 1.0, -1.0, None, "0.5", float("nan")]
    rows = [{"question": f"q{n}?", "answer": "1", "pass_rate": rate} for n, rate in enumerate(rates)]
    rows[4] |= {"PassRate_7BBase": 3}
    source = table(tmp_path, rows)
    prepared = prepare([source], tmp_path / "out", pass_rates=PassRates(0.25, 0.5))
    assert [p.extra["question"] for p in load_problems(tmp_path / "out")] == ["q1?", "q2?", "q6?"]
    assert left_out(prepared) == {"pass_rate_missing": 3, "pass_rate_outside": 2}
    assert prepared.manifest["pass_rates"] == {"lowest": 0.25, "highest": 0.5}
    assert prepared.manifest["sources"][0]["pass_rate_column"] == "pass_rate"
    assert [p.extra["pass_rate"] for p in load_problems(tmp_path / "out")] == [0.25, 0.5, 0.5]
    prepared = prepare([source], tmp_path / "upper", pass_rates=PassRates(highest=0.9))
    assert left_out(prepared) == {"pass_rate_missing": 3, "pass_rate_outside": 1}
