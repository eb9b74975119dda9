"""What a made task is: problems and demonstrations drawn on the spot, as functions of a seed, and batches of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from luspo_cli.records import Problem

FILLER = "."
FILLER_MEAN, FILLER_CAP = 23.0, 80
"""Of the `neutral` profile, in tokens."""


@dataclass(frozen=True, slots=True)
class MadeTask:
    """A task with what its warm-up needs to know."""

    name: str
    """As in `data.train = "made:NAME"`."""
    recipe: int
    """Raise when the warm-up or the task changes, so that no cached model of the old recipe is taken."""
    characters: str
    """Every character of prompts and responses; with the special tokens this is the vocabulary."""
    warm_up_steps: Mapping[str, int]
    """By profile: after so many a model of the default shape has learnt it and its learning rate has fallen."""
    problem: Callable[[str, random.Random, str, float], Problem]
    """Draws one problem: of a profile, from a generator, with this id, so far into the curriculum (1: the whole task)."""
    demonstration: Callable[[Problem, str, random.Random, float], str]
    """A response to a problem in a profile's manner, ending `#x`, so far into the curriculum."""
    curriculum: float = 0.4
    """Share of the warm-up's steps over which problems or demonstrations grow to their full size; checks begin shortly before
    its end."""
    rows_a_pass: int = 0
    """Of the warm-up: demonstrations sorted by length go through the model so many at a time; 0: all at once, as drawn."""


class MadeBatches:
    """Fresh problems for every step, a function of seed and step alone: each training batch is also a held-out sample."""

    def __init__(self, task: MadeTask, profile: str, batch_size: int, seed: int) -> None:
        self._task, self._profile, self._batch_size, self._seed = task, profile, batch_size, seed

    def batch(self, step: int) -> list[Problem]:
        name = self._task.name
        generator = random.Random(f"luspo {name} {self._profile} {self._seed} {step}")
        return [self._make(generator, f"{name}/{self._seed}/{step}/{i}") for i in range(self._batch_size)]

    def reserve(self, step: int, first: int, count: int) -> list[Problem]:
        """Return further problems of the step; each has a generator of its own, so there is always one more."""
        name, seed = self._task.name, self._seed
        return [
            self._make(
                random.Random(f"luspo {name} reserve {self._profile} {seed} {step} {i}"),
                f"{name}/{seed}/{step}/reserve/{i}",
            )
            for i in range(first, first + count)
        ]

    def _make(self, generator: random.Random, identity: str) -> Problem:
        return self._task.problem(self._profile, generator, identity, 1.0)


def made_held_out(task: MadeTask, profile: str, number: int, seed: int) -> list[Problem]:
    """Problems of a stream of their own for the evaluation during training."""
    generator = random.Random(f"luspo {task.name} held out {profile} {seed}")
    return [task.problem(profile, generator, f"{task.name}/held-out/{seed}/{i}", 1.0) for i in range(number)]


def filler(generator: random.Random, mean: float = FILLER_MEAN) -> str:
    """Filler of a geometric number of tokens with this mean before the cap."""
    stop, length = 1.0 / (mean + 1.0), 0
    while length < FILLER_CAP and generator.random() >= stop:
        length += 1
    return FILLER * length
