"""The data sets that have a name here: where the hub keeps them, how their rows are read, and under which licence they came.

The licence is what the data set's own page says. Images and questions that a set took from elsewhere keep their own terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from luspo_cli.data.values import gold_answer


@dataclass(frozen=True, slots=True)
class Published:
    """One data set of the hub."""

    hub_id: str
    hub_config: str | None = None
    data_source: str = ""
    """The hub id where it is empty."""
    prompt: str = "qwen-boxed"
    splits: tuple[str, ...] = ("train", "test")
    gold: Callable[[Any], str | None] = gold_answer
    file_stem: str = ".*"
    """Pattern of the upstream files' names; GSM8K's folder holds others beside them."""
    hub_files: str | None = None
    """Which of the repository's files are the table, where it holds others that could be taken for it."""
    images: str | None = None
    """The repository's archive of the images that the table names by path."""
    licence: str | None = None
    prepared_with: str = ""
    """Options of `luspo prepare-data` that the data of its preset is made with."""


def _gsm8k_gold(value: Any) -> str | None:
    return gold_answer(value) if isinstance(value, str) and "####" in value else None


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "gsm8k": Published(
            "openai/gsm8k",
            "main",
            "gsm8k",
            gold=_gsm8k_gold,
            file_stem=r"(?:train|test)(?:-\d+-of-\d+)?",
            licence="MIT",
        ),
        "dapo-math-17k": Published(
            "BytedTsinghua-SIA/DAPO-Math-17k",
            data_source="math_dapo",
            prompt="dapo",
            splits=("train",),
            file_stem=r"(?i:(?!.*aime).*)",
            licence="Apache-2.0",
        ),
        "virl39k": Published(
            "TIGER-Lab/ViRL39K",
            data_source="virl39k",
            splits=("train",),
            file_stem=r"(?i:39k.*|train.*|virl.*)",
            hub_files="*.parquet",
            images="images.zip",
            licence="MIT; its questions and images come from other data sets, whose terms go on to hold",
            prepared_with="--max-pass-rate 0.9 --held-out 500",
        ),
        "geo3k": Published(
            "hiyouga/geometry3k",
            data_source="hiyouga/geometry3k",
            splits=("train", "validation", "test"),
            file_stem=r"(?i:.*(?:train|val|test).*)",
            licence="MIT; converted from InterGPS",
        ),
    }
)
EASY_VQA = "easy-vqa"
SOURCE_NAMES = (*PUBLISHED, EASY_VQA, "arithmetic")
