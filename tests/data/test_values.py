"""Values of other types than text: read where they mean a text, and named for what they are where they do not."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from luspo_cli.data.columns import SourceOptions
from luspo_cli.data.image_columns import RawImage, is_image_column, is_video_column, raw_images
from luspo_cli.data.left_out import LeftOut
from luspo_cli.data.missing import is_missing
from luspo_cli.data.prepare import prepare
from luspo_cli.data.problems import load_problems
from luspo_cli.data.prompts import QWEN_BOXED
from luspo_cli.data.values import answer_text, gold_answer, read_question
from luspo_cli.errors import UsageError

PART = {"type": "text", "text": "What is 2 + 3?"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Decimal("8.00"), "8"),
        (Decimal("2.50"), "2.5"),
        (Decimal("1E+3"), "1000"),
        (Decimal("-0.125"), "-0.125"),
        (Decimal("-0.00"), "0"),
        (Decimal("12345678901234567890123456789012345678.50"), "12345678901234567890123456789012345678.5"),
        (Decimal("1E+5000"), "1" + "0" * 5000),
        (Decimal("NaN"), None),
        (Decimal("sNaN"), None),
        ([Decimal("4.0")], "4"),
        ([{"type": "text", "text": " 7 "}], "7"),
        ({"type": "text", "text": "7"}, "7"),
        ([{"role": "assistant", "content": "7"}], "7"),
        (["6", "6.0"], None),
        ({"value": 8}, None),
        (b"8", None),
        (float("inf"), None),
    ],
)
def test_gold_answers_of_other_types(value: Any, expected: str | None) -> None:
    assert answer_text(value) == expected


@pytest.mark.parametrize("value", [None, "", " \n", b"", [], {}, float("nan"), Decimal("NaN"), Decimal("sNaN")])
def test_what_is_missing(value: Any) -> None:
    assert is_missing(value)
    assert read_question(value).text == ""
    assert read_question(value).is_text


@pytest.mark.parametrize("value", [0, False, 0.0, "0", [0], {"a": None}, float("inf"), Decimal(0)])
def test_what_is_not_missing(value: Any) -> None:
    assert not is_missing(value)


@pytest.mark.parametrize(
    "value",
    [
        " What is 2 + 3? ",
        PART,
        [PART],
        [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 3?"}],
        [{"role": "user", "content": "What is 2 + 3?"}],
        {"role": "user", "content": [PART]},
        [{"role": "user", "content": [PART | {"image": None}]}, {"role": "assistant", "content": "5"}],
        [{"role": "system", "content": QWEN_BOXED.system}, {"role": "user", "content": "What is 2 + 3?"}],
    ],
)
def test_a_question_in_every_shape(value: Any) -> None:
    question = read_question(value)
    assert question.text == "What is 2 + 3?"
    assert (question.is_text, question.images, question.system, question.earlier_turns) == (True, (), "", False)


@pytest.mark.parametrize("value", [12, 1.5, ["a", "b"], {"value": "a"}, [{"role": "user", "content": 12}], True])
def test_a_question_that_is_no_text(value: Any) -> None:
    assert (read_question(value).text, read_question(value).is_text) == ("", False)


def test_images_are_seen_in_parts_and_marks() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "a.png"}}, PART]
    asked = read_question([{"role": "user", "content": parts}])
    assert (asked.text, asked.images) == ("<image>What is 2 + 3?", (RawImage(path="a.png"),))
    asked = read_question([{"role": "user", "content": [PART, {"type": "image"}]}])
    assert (asked.text, asked.images) == ("What is 2 + 3?<image>", ())
    assert read_question([{"role": "user", "content": [PART, {"type": "video", "video": "a.mp4"}]}]).has_videos


@pytest.mark.parametrize("name", ["image", "images", "Image_2", "decoded_image", "image_path", "imagename", "picture"])
def test_columns_of_images(name: str) -> None:
    assert is_image_column(name)


@pytest.mark.parametrize(
    "name", ["imagination", "image_count_total", "imagesource", "question", "preimage", "picturesque"]
)
def test_columns_of_something_else(name: str) -> None:
    assert not is_image_column(name)
    assert not is_video_column(name)


def test_columns_of_videos() -> None:
    assert [name for name in ("videos", "video_path", "image") if is_video_column(name)] == ["videos", "video_path"]


@pytest.mark.parametrize("value", [b"\x89PNG", "a.png", [{"bytes": b"x", "path": None}], {"path": "a.png"}, ["", "b"]])
def test_a_cell_with_an_image(value: Any) -> None:
    assert raw_images(value)


@pytest.mark.parametrize("value", [None, [], "", [None], {"bytes": None, "path": None}, float("nan"), False, {}])
def test_a_cell_without_an_image(value: Any) -> None:
    assert not raw_images(value)


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=3)
    | st.decimals(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "image"]), inner)
    ),
)


@given(ANY)
@example(b"")
@example([b""])
def test_any_value_is_read_or_named(value: Any) -> None:
    question, gold = read_question(value), gold_answer(value)
    assert question.text == question.text.strip()
    assert question.is_text or not question.text
    assert gold is None or gold.strip() == gold != ""
    assert not (is_missing(value) and (gold or question.text))
    # A file of no bytes is an image that cannot be read, not a row without one.
    assert not (is_missing(value) and raw_images(value)) or value == b""


@pytest.mark.parametrize("value", [3, True, {"filename": "a.png"}, [["a.png"]], [137, 80], [[[0, 0, 0]]], {"image": 5}])
def test_a_cell_that_names_no_image_is_not_an_empty_one(value: Any) -> None:
    """Its row would otherwise be trained on without its image."""
    assert raw_images(value)
    assert set(raw_images(value)) == {RawImage()}


def test_images_of_earlier_turns_belong_to_the_last_question() -> None:
    """None is dropped: beside an image of the last turn, which has a mark, the numbers differ and the row is counted."""
    first = {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is it?"}]}
    turns = [first, {"role": "assistant", "content": "A cat."}, {"role": "user", "content": "And its colour?"}]
    question = read_question(turns)
    assert (question.text, question.images) == ("And its colour?", (RawImage(path="a.png"),))
    turns[-1]["content"] = [{"type": "image", "image": "b.png"}, {"type": "text", "text": "And this?"}]
    question = read_question(turns)
    assert question.text.count("<image>") == 1
    assert question.images == (RawImage(path="a.png"), RawImage(path="b.png"))


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return str(file)


def test_rows_with_videos_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} + 0?", "answer": str(n), "videos": ["a.mp4"] if n < 3 else []} for n in range(7)]
    prepared = prepare([write(tmp_path / "mixed.parquet", rows)], tmp_path / "out")
    assert prepared.rows == {"train": 4}
    assert prepared.manifest["splits"]["train"]["left_out"][LeftOut.WITH_VIDEOS] == 3
    with pytest.raises(UsageError, match=r"None of the 3 rows .*\(3 with videos\)"):
        prepare([write(tmp_path / "all.parquet", rows[:3])], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_images_that_only_later_rows_have_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "late.jsonl"
    file.write_text('{"question": "a?", "answer": 1}\n{"question": "b?", "answer": 2, "image": "b.png"}\n')
    assert prepare([str(file)], tmp_path / "out").manifest["splits"]["train"]["left_out"]["image_missing"] == 1


def test_values_of_other_types_are_not_called_empty(tmp_path: Path) -> None:
    file = tmp_path / "shapes.jsonl"
    file.write_text(
        '{"question": "a?", "answer": 1}\n{"question": "b?", "answer": [1, 2]}\n{"question": "c?", "answer": true}\n'
        '{"question": 4, "answer": 1}\n{"question": "e?", "answer": null}\n'
    )
    left_out = prepare([str(file)], tmp_path / "out").manifest["splits"]["train"]["left_out"]
    assert {reason: count for reason, count in left_out.items() if count} == {
        LeftOut.ANSWER_NOT_TEXT: 2,
        LeftOut.QUESTION_NOT_TEXT: 1,
        LeftOut.EMPTY_ANSWER: 1,
    }


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        (r"We add. The answer is $\boxed{4}$.", "4"),
        ("We add.\n\nSo it is\n$$\\boxed{\\frac{1}{2}}.$$", r"\frac{1}{2}"),
        (r"Either way \boxed{4}, as before \boxed{4}.", "4"),
        ("First \\boxed{2}.\nThen, at last, \\fbox{4}.", "4"),
        (r"\boxed{2} or \boxed{4}", r"\boxed{2} or \boxed{4}"),
        ("No box.\nAt all.", "No box.\nAt all."),
        (r"An open one \boxed{4", r"An open one \boxed{4"),
    ],
)
def test_a_worked_solution_is_answered_by_its_last_box(solution: str, expected: str) -> None:
    assert gold_answer(solution) == expected


def test_golds_from_solutions_are_counted(tmp_path: Path) -> None:
    rows = [
        {"question": "a?", "solution": r"So \boxed{4}."},
        {"question": "b?", "solution": "4"},
        {"question": "c?", "solution": "#### 5"},
        {"question": "d?", "solution": r"\boxed{7}"},
    ]
    options = SourceOptions(answer_column="solution")
    prepared = prepare([write(tmp_path / "mine.parquet", rows)], tmp_path / "out", options=options)
    assert [problem.answer for problem in load_problems(tmp_path / "out")] == ["4", "4", "5", "7"]
    assert prepared.manifest["splits"]["train"]["golds_from_solutions"] == 2


def test_a_system_turn_of_the_data_is_kept_or_counted(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 1?"}]
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    own = [{"role": "system", "content": QWEN_BOXED.system}, {"role": "user", "content": "What is 1 + 2?"}]
    rows = [{"prompt": turns, "answer": "2"}, {"prompt": own, "answer": "3"}]
    rows.append({"prompt": [*talk, {"role": "user", "content": "What is 1 + 3?"}], "answer": "4"})
    source = write(tmp_path / "chat.parquet", rows)
    counts = prepare([source], tmp_path / "boxed").manifest["splits"]["train"]
    assert (counts["system_turns_replaced"], counts["earlier_turns_dropped"]) == (1, 1)
    assert load_problems(tmp_path / "boxed")[0].prompt[0].content == QWEN_BOXED.system
    counts = prepare([source], tmp_path / "plain", prompt="plain").manifest["splits"]["train"]
    assert counts["system_turns_replaced"] == 0
    prompts = [problem.prompt for problem in load_problems(tmp_path / "plain")]
    assert [[turn.role for turn in prompt] for prompt in prompts] == [["system", "user"], ["user"], ["user"]]
    assert prompts[0][0].content == "Be brief."
