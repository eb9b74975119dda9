"""What the TOML file of a benchmark of one's own may say (docs/own-benchmark.md), checked before anything is read or drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, field_validator

from luspo_cli.config.base import Section
from luspo_cli.config.layers import read_toml, validated
from luspo_cli.config.stored import flatten
from luspo_cli.data.prompts import PROMPTS, PromptTemplate, prompt_template
from luspo_cli.errors import UsageError, nearest
from luspo_cli.function_path import parse_function_path
from luspo_cli.grading.answers import AnswerMark

GRADERS = ("math", "exact", "choice")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


class Columns(Section):
    """Where the rows have what a problem needs; a dotted name looks into nested objects."""

    id: str = "id"
    """Without such a column the number of the row, counted from 0."""
    question: str = "question"
    answer: str = "answer"
    images: str = ""
    """Paths of images below the file's folder, one text or a list; empty: no images."""


class Prompt(Section):
    """How a question is posed: a template by name, or texts around it."""

    template: str = ""
    """One of `luspo prepare-data`'s; empty: what stands below, or qwen-boxed where nothing does."""
    system: str = ""
    before: str = ""
    after: str = ""
    mark: AnswerMark | None = Field(default=None, strict=False)
    """Where the answer is looked for first; left out: as the text of the prompt asks."""

    @field_validator("template")
    @classmethod
    def _known(cls, name: str) -> str:
        if name and name not in PROMPTS:
            raise ValueError(
                f"there is no prompt template '{name}'{nearest(name, PROMPTS)}; there are {', '.join(PROMPTS)}"
            )
        return name

    def faults(self) -> Iterator[str]:
        if self.template and (given := self.changed("system", "before", "after")):
            yield f"prompt.template and prompt.{given[0]} are two prompts: leave one of them out"

    def made(self) -> PromptTemplate:
        """The template."""
        if self.changed("system", "before", "after"):
            return PromptTemplate("own", self.mark, self.system, self.before, self.after)
        return prompt_template(self.template or "qwen-boxed")


class Description(Section):
    """What the TOML file says."""

    name: str = ""
    """Of the result's file; empty: the TOML file's own name."""
    data: str = ""
    """JSON lines, JSON, parquet, Arrow, CSV or TSV."""
    grader: str = "math"
    """`math`, `exact` (the marked answer, letter by letter), `choice` (labels of options), or a function, `file.py:name`."""
    grader_seconds: float = Field(default=10.0, gt=0)
    """Seconds that one call of a grader function may take."""
    version: int = Field(default=1, ge=1)
    """Raise it when scores of before shall not be compared with those of now."""
    licence: str = ""
    by: tuple[str, ...] = Field(default=(), strict=False)
    """Columns by whose values accuracy is shown apart."""
    columns: Columns = Columns()
    prompt: Prompt = Prompt()

    def faults(self) -> Iterator[str]:
        if not self.data:
            yield 'data is missing: name the file with the problems, data = "problems.jsonl"'
        if self.name and not _NAME.fullmatch(self.name):
            yield f"the name '{self.name}' names a file: letters, digits, _, . and - only"
        if self.grader not in GRADERS:
            try:
                parse_function_path(self.grader)
            except ValueError:
                yield f"grader = '{self.grader}' is none of {', '.join(GRADERS)}, and no function path/to/file.py:name"


def read_description(file: Path) -> Description:
    """The checked content of a benchmark's TOML file; UsageError, which names the file, where it cannot be used."""
    content = read_toml(file)
    origins = dict.fromkeys([*flatten(content), *content], str(file))
    try:
        return validated(Description, content, origins)
    except UsageError as error:
        said = str(error)
        raise UsageError(said if said.startswith(str(file)) else f"{file}: {said}") from None
