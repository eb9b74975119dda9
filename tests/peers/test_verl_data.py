"""Prepared data with images, read back by stock verl's own dataset class: relative and absolute paths, and bytes.

Run with `make test-verl`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest

Image = pytest.importorskip("PIL.Image", reason="needs verl in another environment: make peers")
pytestmark = pytest.mark.verl
PICTURES = [Image.new("RGB", (30 + n, 20), (10 * n, 100, 200)) for n in range(6)]


@pytest.fixture(scope="module", autouse=True)
def version() -> None:
    verl = pytest.importorskip("verl", reason="needs verl in another environment: make peers")
    assert verl.__version__ == "0.9.1"


def prepared(folder: Path, stored_as: Literal["relative", "absolute", "bytes"]) -> Path:
    """Problem n has n % 3 images: n and n - 1, in this order."""
    from luspo_cli.data.prepare import prepare

    for number, picture in enumerate(PICTURES):
        picture.save(folder / f"{number}.png")
    rows = [
        {"question": f"Question {n}?", "answer": str(n), "image": [f"{n}.png", f"{n - 1}.png"][: n % 3], "qid": f"q{n}"}
        for n in range(6)
    ]
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepare([str(folder / "mine.jsonl")], folder / "out", prompt="plain", images=stored_as)
    return folder / "out"


def dataset(file: Path, cache: Path) -> Any:
    """verl's dataset; its processor is asked for nothing as long as no prompt is measured."""
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    config = OmegaConf.create({"cache_dir": str(cache), "filter_overlong_prompts": False})
    return RLHFDataset(str(file), tokenizer=None, config=config, processor=object())


def opened(part: dict[str, Any]) -> Any:
    """As verl's reader of pictures (`qwen_vl_utils.fetch_image`) takes an image part: a picture, or a path to open."""
    image = part["image"]
    return (image if isinstance(image, Image.Image) else Image.open(image)).convert("RGB")


@pytest.mark.parametrize("stored_as", ["relative", "absolute", "bytes"])
def test_verl_reads_what_was_prepared(stored_as: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared(tmp_path, stored_as)
    if stored_as == "relative":
        monkeypatch.chdir(folder)
    rows = dataset(folder / "train.parquet", tmp_path / "cache")
    assert len(rows) == 6
    for number in range(6):
        row = rows[number]
        wanted = [PICTURES[number], PICTURES[number - 1]][: number % 3]
        content = row["raw_prompt"][0]["content"]
        if not wanted:
            assert content == f"Question {number}?"
        else:
            assert [part["type"] for part in content] == ["image"] * len(wanted) + ["text"]
            assert [opened(part).tobytes() for part in content[:-1]] == [picture.tobytes() for picture in wanted]
            assert content[-1]["text"] == f"Question {number}?"
        assert row["reward_model"]["ground_truth"] == str(number)
        assert (row["index"], row["extra_info"]["qid"], row["data_source"]) == (number, f"q{number}", "mine")


def test_verl_looks_for_relative_paths_where_the_process_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why data for verl's workers is prepared with absolute paths or bytes."""
    folder = prepared(tmp_path, "relative")
    monkeypatch.chdir(tmp_path)
    part = dataset(folder / "train.parquet", tmp_path / "cache")[1]["raw_prompt"][0]["content"][0]
    with pytest.raises(FileNotFoundError):
        opened(part)
