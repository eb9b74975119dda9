"""What the tests of `luspo eval` draw with: a scripted sampler and a made benchmark."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from luspo_cli.config.eval import BenchmarkConfig, EvalRun, Mode, SamplingConfig
from luspo_cli.evaluation.benchmarks.gsm8k import Gsm8k
from luspo_cli.evaluation.runner import Evaluation
from luspo_cli.evaluation.sampling import SamplingModel
from luspo_cli.records import Prompt, Rollout, StopReason
from luspo_cli.rollout.sampler import SamplingOptions


class FiveProblems(Gsm8k):
    """GSM8K's rules on five problems, so that both modes can be tried: problem n has the answer n."""

    name = "FIVE"
    size = 5


class CountingSampler:
    """Keeps the calls of an evaluation; what is answered is a subclass's `_rollout`.

    `dies_at` is the number of the call that raises, as a process that is killed in it would end.
    """

    def __init__(self, dies_at: int | None = None) -> None:
        self.calls: list[tuple[list[str], int]] = []
        self.dies_at = dies_at

    def sample_groups(
        self, prompts: Sequence[Prompt], options: SamplingOptions, on_progress: Callable[[int], None] | None = None
    ) -> list[list[Rollout]]:
        if self.dies_at == len(self.calls):
            raise KeyboardInterrupt
        self.calls.append(([prompt.problem_id for prompt in prompts], options.seed))
        groups = [
            [self._rollout(prompt, options, place * options.group_size + n, n) for n in range(options.group_size)]
            for place, prompt in enumerate(prompts)
        ]
        if on_progress:
            on_progress(len(prompts) * options.group_size)
        return groups

    def load_weights(self, policy: Any) -> None:
        raise AssertionError("an evaluation never changes weights")

    @staticmethod
    def _rollout(prompt: Prompt, options: SamplingOptions, row: int, number: int) -> Rollout:
        """The response in this row of the call, which is this sample of its problem."""
        raise NotImplementedError


class ScriptedSampler(CountingSampler):
    """Writes `#### 2`, whose length and end depend on the call's seed; every other sample puts a box instead."""

    @staticmethod
    def _rollout(prompt: Prompt, options: SamplingOptions, row: int, number: int) -> Rollout:
        draw = hashlib.sha256(f"{options.seed} {row}".encode()).digest()[0]
        length = 1 + draw % options.max_response_tokens
        text = f"draw {draw}: " + ("#### 2" if number % 2 == 0 else r"\boxed{2}")
        stop = StopReason.LENGTH if length == options.max_response_tokens else StopReason.END
        return Rollout(prompt.problem_id, prompt.tokens, tuple(range(length)), text, stop)


class WordTokenizer:
    """One token a character; knows every character."""

    chat_template = None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) for character in text]}

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join(map(chr, tokens))


def scripted(sampler: ScriptedSampler, context: int | None = None) -> Callable[[], SamplingModel]:
    return lambda: SamplingModel(sampler, WordTokenizer(), context)


def never() -> SamplingModel:
    raise AssertionError("nothing was left to draw, and the model was loaded")


def five_problems(tmp_path: Path) -> Path:
    file = tmp_path / "five.jsonl"
    rows = [{"question": f"What is {n}?", "answer": f"It is {n}.\n#### {n}"} for n in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def evaluation_of(tmp_path: Path, out: Path, mode: Mode = "rule", **settings: Any) -> Evaluation:
    """Five problems, 2 samples each, two problems a chunk: chunks [0, 1], [2, 3], [4]."""
    benchmark = FiveProblems()
    usual = {"samples": 2, "max_response_tokens": 8, "max_rows": 4, "dtype": "float32", "sampler": "in-process"}
    chosen = SamplingConfig(**usual | settings)
    problems = benchmark.problems(five_problems(tmp_path))
    limited = problems[: chosen.limit or None]
    config = EvalRun(benchmark=BenchmarkConfig(prompt="verl", mode=mode), sampling=chosen)
    return Evaluation(benchmark, limited, config, "the model", "w" * 8, None, out)


def aime_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"id": 60 + n, "problem": f"What is {n}?", "answer": str(n)} for n in range(30)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
