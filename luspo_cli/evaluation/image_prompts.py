"""A benchmark's problems, images and all, as the prompts that a sampler takes.

Pixels are made when a prompt is asked for and not kept: those of a thousand problems at once would fill the memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from luspo_cli.config.rollout import TemplateValue
from luspo_cli.data.images import image_file
from luspo_cli.errors import UsageError
from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem
from luspo_cli.policy.inputs import prompt_inputs, prompt_length
from luspo_cli.records import Problem, Prompt


def benchmark_prompt(
    benchmark: Benchmark,
    problem: BenchmarkProblem,
    variant: str | None,
    tokenizer: Any,
    processor: Any | None = None,
    folder: Path | None = None,
    template_arguments: Mapping[str, TemplateValue] | None = None,
) -> Prompt:
    """The prompt of `problem` in `variant`; `processor` is a vision model's, `folder` the one that holds the images.

    Raises UsageError where the model reads text only, or an image or a mark is not as it should be.
    """
    return prompt_inputs(asked_problem(benchmark, problem, variant, folder), tokenizer, processor, template_arguments)


class ImagePrompts(Sequence[Prompt]):
    """The prompts of many problems, each made anew when it is asked for; a slice makes its own prompts only."""

    def __init__(
        self,
        benchmark: Benchmark,
        problems: Sequence[BenchmarkProblem],
        variant: str | None,
        tokenizer: Any,
        processor: Any,
        folder: Path,
        template_arguments: Mapping[str, TemplateValue],
    ) -> None:
        self.benchmark, self.problems, self.variant = benchmark, problems, variant
        self.tokenizer, self.processor, self.folder = tokenizer, processor, folder
        self.template_arguments = template_arguments

    def __len__(self) -> int:
        return len(self.problems)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...

    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...

    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self._prompt(problem) for problem in self.problems[index]]
        return self._prompt(self.problems[index])

    def lengths(self) -> list[int]:
        """The length of each prompt in tokens, without decoding an image; raises UsageError for an unusable problem."""
        asked = (asked_problem(self.benchmark, problem, self.variant, self.folder) for problem in self.problems)
        return [prompt_length(problem, self.tokenizer, self.processor, self.template_arguments) for problem in asked]

    def _prompt(self, problem: BenchmarkProblem) -> Prompt:
        return benchmark_prompt(
            self.benchmark,
            problem,
            self.variant,
            self.tokenizer,
            self.processor,
            self.folder,
            self.template_arguments,
        )


def asked_problem(benchmark: Benchmark, problem: BenchmarkProblem, variant: str | None, folder: Path | None) -> Problem:
    """The benchmark's problem as a prompt is made from it: its turns in `variant` and its images in `folder`."""
    turns = benchmark.prompt(problem, variant)
    try:
        images = tuple(image_file(path, folder or Path()) for path in problem.images)
    except UsageError as error:
        raise UsageError(f"problem '{problem.id}': {error}") from error
    return Problem(problem.id, turns, problem.gold, benchmark.name, images)
