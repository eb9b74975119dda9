"""Our problems as verl reads them: one parquet file a split, images as bytes inside, the prompt's answer mark in `extra_info`.

An image goes along as the bytes that it is stored as where verl sees the same pixels in them. What only our reader turns upright,
or onto white ground, is stored as the PNG of what we read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from luspo_cli.config.data import DataConfig
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import UsageError
from luspo_cli.files import replacing, said_in_one_sentence
from luspo_cli.grading.prompts import mark_of_prompt
from luspo_cli.policy.model_files import config_file
from luspo_cli.records import Problem

_ROWS = 256
"""In a row group."""
_ORIENTATION = 0x0112
_AS_THEY_ARE = {"PNG": ("RGB", "L"), "JPEG": ("RGB", "L")}
"""Formats and colours in which verl's reader sees what ours sees."""


def write_problems(file: Path, problems: Sequence[Problem], split: str, config: DataConfig) -> None:
    """Write the problems in verl's layout, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    bounds = {name: value for name in ("min_pixels", "max_pixels") if (value := getattr(config, name))}
    text, turn = pa.string(), pa.struct({"role": pa.string(), "content": pa.string()})
    columns = {
        "data_source": text,
        "prompt": pa.list_(turn),
        "ability": text,
        "reward_model": pa.struct({"style": text, "ground_truth": text}),
        "extra_info": pa.struct({"id": text, "split": text, "index": pa.int64(), "answer_mark": text}),
    }
    if any(problem.images for problem in problems):
        columns["images"] = pa.list_(pa.struct({"bytes": pa.binary(), **dict.fromkeys(bounds, pa.int64())}))
    schema = pa.schema(list(columns.items()))
    with said_in_one_sentence(file), replacing(file) as stream, pq.ParquetWriter(stream, schema) as writer:
        for start in range(0, len(problems), _ROWS):
            rows = list(_rows(problems[start : start + _ROWS], start, split, bounds))
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _rows(problems: Sequence[Problem], start: int, split: str, bounds: dict[str, int]) -> Iterator[dict[str, Any]]:
    for index, problem in enumerate(problems, start=start):
        yield {
            "data_source": source_of(problem),
            "prompt": [{"role": turn.role, "content": turn.content} for turn in problem.prompt],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {
                "id": problem.id,
                "split": split,
                "index": index,
                "answer_mark": str(mark_of_prompt(turn.content for turn in problem.prompt)),
            },
            "images": [{"bytes": image_bytes(image), **bounds} for image in problem.images],
        }


def source_of(problem: Problem) -> str:
    """What verl's `data_source` is of a problem."""
    return problem.data_source or "luspo"


def image_bytes(image: Any) -> bytes:
    """The image's file, or a PNG of the picture that our reader makes of it where another reader would see another one."""
    from PIL import Image

    content: bytes = image.content()
    with Image.open(BytesIO(content)) as opened:
        plain = opened.mode in _AS_THEY_ARE.get(opened.format or "", ()) and "transparency" not in opened.info
        if plain and opened.getexif().get(_ORIENTATION, 1) == 1:
            return content
    stream = BytesIO()
    image.load().save(stream, format="PNG")
    return stream.getvalue()


def opens_thought(config: TrainRun, problems: Sequence[Problem]) -> bool | None:
    """Whether the model's chat template opens a thought that the response begins in; None where the model is not here."""
    if not problems or config_file(config.model.path, config.model.revision) is None:
        return None
    from transformers import AutoTokenizer

    from luspo_cli.policy.inputs import leaves_thought_open

    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UsageError(f"the tokenizer of model.path '{config.model.path}' cannot be read: {error}") from None
    turns = [{"role": turn.role, "content": turn.content} for turn in problems[0].prompt]
    return leaves_thought_open(tokenizer, problems[0], turns, config.rollout.chat_template)
