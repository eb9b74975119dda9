"""The warm-up of a made vision model on problems from a file: demonstrations are its own answers behind filler."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from luspo_cli.data.prompts import IMAGE_MARK
from luspo_cli.errors import UsageError
from luspo_cli.records import Problem
from luspo_cli.training.made.pictures import PICTURES, demonstration
from luspo_cli.training.made.task import MadeTask

CHARACTERS = PICTURES.characters + "?"
"""Digits and lower-case English."""
NAME, RECIPE = "file", 3
"""Known without reading the file, so that a cached model is found without it."""


def task_of_file(problems: Sequence[Problem], path: str) -> MadeTask:
    """The training problems of the file or folder at `path` as a task to warm up on.

    UsageError where a question or answer has a character that the made model cannot write.
    """
    known = set(CHARACTERS)
    for problem in problems:
        parts = [(f"its {message.role} turn", message.content.replace(IMAGE_MARK, "")) for message in problem.prompt]
        for where, text in (*parts, ("its answer", problem.answer)):
            if foreign := sorted(set(text) - known):
                raise UsageError(
                    f"problem '{problem.id}' of {path} has the character {foreign[0]!r}, which a made model does not know"
                    f" (digits, lower-case English, ? and space), in {where}: prepare the data with --prompt plain, which adds"
                    " no words, and write questions and answers in lower case, or set model.path to a model for other text"
                )

    def draw(profile: str, generator: random.Random, name: str, share: float) -> Problem:
        del profile, name, share  # every problem is its own
        return generator.choice(problems)

    def respond(problem: Problem, profile: str, generator: random.Random, share: float) -> str:
        del share  # all the filler from the start
        return demonstration(problem, profile, generator, 1.0)

    return replace(
        PICTURES,
        name=NAME,
        recipe=RECIPE,
        characters=CHARACTERS,
        warm_up_steps={"neutral": 600},
        problem=draw,
        demonstration=respond,
        curriculum=0.15,  # nothing grows; no earlier check could find a model fit
    )
