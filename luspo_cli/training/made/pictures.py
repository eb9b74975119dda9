"""The made task with pictures: count shapes, or read a bar chart, a clock or a table.

The question names a colour and the picture alone says the answer: without looking, the best is to say the most frequent digit.
Demonstrations are those of the `neutral` profile of the text task: a run of filler of geometric length, then the answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from luspo_cli.config.run import MADE_PICTURES, PICTURE_KINDS
from luspo_cli.data.prompts import IMAGE_MARK
from luspo_cli.records import Message, Problem
from luspo_cli.training.made.drawing import CELLS, COLOURS, DIGITS, HOURS, SHADES, DrawnImage, Parts
from luspo_cli.training.made.task import FILLER, FILLER_MEAN, MadeTask, filler

FORMS = ("disc", "square", "triangle")
MOST_SHAPES, MOST_OTHERS = 6, 6
"""How many have the colour asked for, and others."""
TALLEST, FEWEST_HANDS = 7, 2
"""Of bars and of a clock."""


def _shapes(generator: random.Random) -> tuple[Parts, str, int]:
    asked = generator.choice(list(COLOURS))
    others = [colour for colour in COLOURS if colour != asked]
    number = generator.randint(0, MOST_SHAPES)
    shown = [asked] * number + [generator.choice(others) for _ in range(generator.randint(0, MOST_OTHERS))]
    cells = generator.sample(range(CELLS * CELLS), len(shown))
    parts = tuple(
        (cell, colour, generator.choice(FORMS), generator.randint(-1, 1), generator.randint(-1, 1))
        for cell, colour in zip(cells, shown, strict=True)
    )
    return parts, f"count {asked}", number


def _bars(generator: random.Random) -> tuple[Parts, str, int]:
    colours = _shuffled(generator)
    heights = [generator.randint(1, TALLEST) for _ in colours]
    place = generator.randrange(len(colours))
    return tuple(zip(colours, heights, strict=True)), f"bar {colours[place]}", heights[place]


def _clock(generator: random.Random) -> tuple[Parts, str, int]:
    colours = _shuffled(generator)
    hours = generator.sample(range(HOURS), generator.randint(FEWEST_HANDS, len(colours)))
    place = generator.randrange(len(hours))
    return tuple(zip(colours, hours, strict=False)), f"clock {colours[place]}", hours[place]


def _table(generator: random.Random) -> tuple[Parts, str, int]:
    colours = _shuffled(generator)
    lines = [[generator.randrange(len(DIGITS)) for _ in SHADES] for _ in colours]
    place, column = generator.randrange(len(colours)), generator.randrange(len(SHADES))
    parts: Parts = tuple((colour, *digits) for colour, digits in zip(colours, lines, strict=True))
    return parts, f"cell {list(SHADES)[column]} {colours[place]}", lines[place][column]


def _shuffled(generator: random.Random) -> list[str]:
    colours = list(COLOURS)
    generator.shuffle(colours)
    return colours


_DRAWS: Mapping[str, Callable[[random.Random], tuple[Parts, str, int]]] = {
    "shapes": _shapes,
    "bars": _bars,
    "clock": _clock,
    "table": _table,
}
"""By kind: draws from a generator what a picture shows, the question and its answer."""


def demonstration(problem: Problem, profile: str, generator: random.Random, share: float) -> str:
    """Filler, then the right answer; early in the curriculum (`share` of it, up to 1) the filler is short.

    A model learns to look sooner from a place that is always equally far from the picture.
    """
    del profile
    return filler(generator, FILLER_MEAN * share) + f"#{problem.answer}"


def _task(name: str, kinds: tuple[str, ...]) -> MadeTask:
    def draw(profile: str, generator: random.Random, identity: str, share: float) -> Problem:
        del share  # of full size wherever the curriculum is
        kind = kinds[int(generator.random() * len(kinds))]
        parts, question, answer = _DRAWS[kind](generator)
        return Problem(
            identity,
            (Message("user", f"{IMAGE_MARK}{question}="),),
            str(answer),
            f"made/pictures/{profile}",
            (DrawnImage(kind, parts),),
            extra={"category": kind},
        )

    return MadeTask(
        name=name,
        recipe=3,
        characters="0123456789abcdefghijklmnopqrstuvwxyz =#" + FILLER,
        warm_up_steps={"neutral": 500},
        problem=draw,
        demonstration=demonstration,
        curriculum=0.4,
        rows_a_pass=16,
    )


PICTURES = _task("pictures", ("shapes", "bars", "clock"))
"""Equally often. With tables too, a small model takes much longer to learn to look."""
PICTURE_TASKS = {
    MADE_PICTURES: PICTURES,
    **{f"{MADE_PICTURES}/{kind}": _task(f"pictures/{kind}", (kind,)) for kind in PICTURE_KINDS},
}
"""By what `data.train` and `data.held_out` say: the mix, and each kind alone."""
