"""Tokens are placed in their text exactly, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from luspo_cli.analysis.history import read_run
from luspo_cli.report.tokens import TokenTexts, find_tokenizer


def characters() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"<end>": 0, "a": 1, "b": 2, "<": 3, "𝒙": 4}, unk_token="<end>"))
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def test_pieces_of_a_character_tokenizer_with_an_end_that_is_not_shown() -> None:
    texts = TokenTexts(characters())
    assert texts.lengths([1, 3, 2, 0], "a<b") == [1, 1, 1, 0]
    assert texts.lengths([4, 1], "𝒙a") == [2, 1]  # JavaScript counts UTF-16 units


def test_a_text_that_the_tokens_do_not_make_up_has_no_places() -> None:
    assert TokenTexts(characters()).lengths([1, 2], "ba") is None


def test_a_character_of_several_byte_tokens_is_its_last_tokens() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokens = tokenizer.encode("aé b").ids
    assert len(tokens) == 5
    assert TokenTexts(tokenizer).lengths(tokens, "aé b") == [1, 0, 1, 1, 1]


def test_a_space_that_a_lone_token_loses_is_found() -> None:
    tokenizer = Tokenizer(models.WordLevel({"▁one": 0, "▁two": 1}, unk_token="▁one"))
    tokenizer.decoder = decoders.Metaspace()
    assert tokenizer.decode([1]) == "two"
    assert TokenTexts(tokenizer).lengths([0, 1, 0], "one two one") == [3, 4, 4]


def test_the_newest_checkpoint_has_the_tokenizer(make_run, tmp_path: Path) -> None:
    run = make_run("a")
    assert find_tokenizer(read_run(run)) is None
    for step in (2, 4):
        model = run / f"checkpoints/step-{step:06d}/model"
        model.mkdir(parents=True)
        (model / "tokenizer.json").write_text("{}" if step == 4 else characters().to_str(), encoding="utf-8")
    found = find_tokenizer(read_run(run))  # the newest one's is unreadable
    assert found is not None
    assert found.lengths([1], "a") == [1]


def test_the_folder_that_a_run_started_from_has_one_too(make_run, tmp_path: Path) -> None:
    run = make_run("a")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/tokenizer.json").write_text(characters().to_str(), encoding="utf-8")
    config = json.loads((run / "config.json").read_text()) | {"model": {"path": str(tmp_path / "model")}}
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert find_tokenizer(read_run(run)) is not None
