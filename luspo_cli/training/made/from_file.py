"""The warm-up of a made vision model on problems from a file: demonstrations are its own answers behind filler."""

from __future__ import annotations

import random
from dataclasses import replace

from luspo_cli.data.problems import load_problems
from luspo_cli.data.prompts import IMAGE_MARK
from luspo_cli.errors import UsageError
from luspo_cli.records import Problem
from luspo_cli.training.made.pictures import PICTURES, demonstration
from luspo_cli.training.made.task import MadeTask

CHARACTERS = PICTURES.characters + "?"
"""Digits and lower-case English."""
NAME, RECIPE = "file", 3
"""Known without reading the file, so that a cached model is found without it."""


def task_of_file(path: str) -> MadeTask:
    """The training problems of a file or folder as a task to warm up on.

    UsageError where a question or answer has a character that the made model cannot write.
    """
    problems = load_problems(path)
    known = set(CHARACTERS)
    for problem in problems:
        text = "".join(message.content for message in problem.prompt).replace(IMAGE_MARK, "") + problem.answer
        if foreign := sorted(set(text) - known):
            raise UsageError(
                f"problem '{problem.id}' of {path} has the character {foreign[0]!r}, which a made model does not know (digits,"
                " lower-case English, ? and space): set model.path to a model for other text"
            )

    def draw(profile: str, generator: random.Random, name: str, share: float) -> Problem:
        del profile, name, share  # every problem is its own
        return generator.choice(problems)

    return replace(PICTURES, name=NAME, recipe=RECIPE, characters=CHARACTERS, problem=draw, demonstration=demonstration)
