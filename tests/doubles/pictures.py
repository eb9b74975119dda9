"""Pictures of one colour as a benchmark in MathVista's layout, and a sampler that answers by what it is shown."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from doubles.evaluation import CountingSampler
from doubles.vision import colour_image, vision_processor
from luspo_cli.config.eval import BenchmarkConfig, EvalRun, SamplingConfig
from luspo_cli.evaluation.benchmarks.mathvista import MathVista
from luspo_cli.evaluation.runner import Evaluation
from luspo_cli.evaluation.sampling import SamplingModel
from luspo_cli.records import Prompt, Rollout, StopReason
from luspo_cli.rollout.sampler import SamplingOptions

COLOURS = {"red": (210, 40, 40), "green": (40, 190, 50), "blue": (40, 50, 210), "yellow": (220, 210, 50)}
SIZES = (56, 60, 66)
"""Of the square pictures, in pixels a side; the processor makes 4 tokens of each."""
TASKS = ("plots", "plots", "photographs")


def pictures_folder(folder: Path, pictures: int = 24, rows: int = 1000) -> Path:
    """Write testmini.json with `rows` rows about so many pictures: the colours in turn, every shade another one."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = random.Random(0)
    content = {}
    for number in range(rows):
        answer = list(COLOURS)[number % 4]
        file = f"images/{number % pictures}.png"
        if number < pictures:
            (folder / "images").mkdir(exist_ok=True)
            red, green, blue = (value + draws.randint(-30, 30) for value in COLOURS[answer])
            side = SIZES[number * len(SIZES) // pictures]
            colour_image(folder / file, (red, green, blue), side, side)
        content[str(number + 1)] = {
            "pid": str(number + 1), "question": "Which colour is it?", "image": file, "choices": list(COLOURS), "unit": None,
            "precision": None, "answer": answer, "question_type": "multi_choice", "answer_type": "text",
            "metadata": {
                "language": "english", "source": "made", "category": "general-vqa", "task": TASKS[number % len(TASKS)],
                "context": "scene", "grade": "elementary school", "skills": ["counting"] * (number % 2) + ["colours"],
            },
        }  # fmt: skip
    (folder / "testmini.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


class Pictures(MathVista):
    """Eight problems about eight pictures."""

    name = "PICTURES"
    size = 8


class SeeingSampler(CountingSampler):
    """Answers with the colour that it is shown, with none for noise; the call's seed decides the words around it."""

    @staticmethod
    def _rollout(prompt: Prompt, options: SamplingOptions, row: int, number: int) -> Rollout:
        assert prompt.image_inputs is not None
        pixels = prompt.image_inputs["pixel_values"]
        spread = float(pixels.view(len(pixels), 3, -1).std(-1).mean())
        red, green, blue = pixels.view(len(pixels), 3, -1).mean((0, 2)).tolist()
        letter = "D" if min(red, green) > blue + 0.5 else "ABC"[max(range(3), key=[red, green, blue].__getitem__)]
        text = f"{options.seed % 97} {number} " + (f"\\boxed{{{letter}}}" if spread < 0.2 else "noise")
        return Rollout(prompt.problem_id, prompt.tokens, tuple(range(len(text))), text, StopReason.END)


def pictures_of(folder: Path, out: Path, **settings: Any) -> Evaluation:
    """Eight problems, 2 samples each, four problems a chunk: chunks [1 to 4], [5 to 8]."""
    benchmark = Pictures()
    usual = {"samples": 2, "max_response_tokens": 8, "max_rows": 8, "dtype": "float32", "sampler": "in-process"}
    config = EvalRun(benchmark=BenchmarkConfig(prompt="boxed"), sampling=SamplingConfig(**usual | settings))
    if not (folder / "testmini.json").exists():
        pictures_folder(folder, 8, 8)
    return Evaluation(benchmark, benchmark.problems(folder), config, "the model", "w" * 8, None, out)


def seeing(sampler: SeeingSampler) -> Callable[[], SamplingModel]:
    processor = vision_processor()
    return lambda: SamplingModel(sampler, processor.tokenizer, None, processor)
