"""The made task with pictures: count what has a colour, or read the height of a bar; drawn on the spot, kept nowhere.

The question names a colour and the picture alone says the answer: without looking, the best is to say the most frequent digit.
Demonstrations are those of the `neutral` profile of the text task: a run of filler of geometric length, then the answer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from luspo_cli.data.prompts import IMAGE_MARK
from luspo_cli.records import Message, Problem
from luspo_cli.training.made.task import FILLER, MadeTask, filler

SIDE = 64
"""Pixels, of all pictures: 16 image tokens where a token is 16 by 16 pixels."""
COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (240, 200, 30)}
FORMS = ("disc", "square", "triangle")
CELLS, CELL = 4, SIDE // 4
"""Places for shapes in a row, and their side in pixels."""
MOST_SHAPES, MOST_OTHERS = 6, 6
TALLEST, UNIT = 7, SIDE // 8
"""Of bars: the greatest height, and the pixels of one."""


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """A picture as what it shows; drawn each time that it is asked for."""

    kind: str
    parts: tuple[tuple[str | int, ...], ...]
    """`shapes`: cell, colour, form, and how far right and down it is moved; `bars`: colour and height, from left to right."""

    @property
    def name(self) -> str:
        return f"{self.kind} " + " ".join(",".join(map(str, part)) for part in self.parts)

    def load(self) -> Image.Image:
        """The picture, RGB."""
        image = Image.new("RGB", (SIDE, SIDE), "white")
        (_draw_shapes if self.kind == "shapes" else _draw_bars)(ImageDraw.Draw(image), self.parts)
        return image

    def size(self) -> tuple[int, int]:
        return SIDE, SIDE


def make_problem(profile: str, generator: random.Random, name: str, share: float = 1.0) -> Problem:
    """Draw one problem, of full size wherever the curriculum is (`share`)."""
    del share
    colours = list(COLOURS)
    if generator.random() < 0.5:
        asked = generator.choice(colours)
        number = generator.randint(0, MOST_SHAPES)
        shown = [asked] * number + [
            generator.choice([colour for colour in colours if colour != asked])
            for _ in range(generator.randint(0, MOST_OTHERS))
        ]
        cells = generator.sample(range(CELLS * CELLS), len(shown))
        image = DrawnImage(
            "shapes",
            tuple(
                (cell, colour, generator.choice(FORMS), generator.randint(-1, 1), generator.randint(-1, 1))
                for cell, colour in zip(cells, shown, strict=True)
            ),
        )
        text, answer = f"count {asked}=", number
    else:
        generator.shuffle(colours)
        heights = [generator.randint(1, TALLEST) for _ in colours]
        place = generator.randrange(len(colours))
        image = DrawnImage("bars", tuple(zip(colours, heights, strict=True)))
        text, answer = f"bar {colours[place]}=", heights[place]
    return Problem(
        name,
        (Message("user", IMAGE_MARK + text),),
        str(answer),
        f"made/pictures/{profile}",
        (image,),
        extra={"category": image.kind},
    )


def demonstration(problem: Problem, profile: str, generator: random.Random) -> str:
    """Filler, then the right answer."""
    return filler(generator) + f"#{problem.answer}"


def _draw_shapes(pen: ImageDraw.ImageDraw, parts: tuple[tuple[str | int, ...], ...]) -> None:
    for cell, colour, form, right, down in parts:
        left, top = int(cell) % CELLS * CELL + 2 + int(right), int(cell) // CELLS * CELL + 2 + int(down)
        wide, fill = CELL - 5, COLOURS[str(colour)]
        if form == "disc":
            pen.ellipse((left, top, left + wide, top + wide), fill=fill)
        elif form == "square":
            pen.rectangle((left, top, left + wide, top + wide), fill=fill)
        else:
            pen.polygon(
                ((left, top + wide), (left + wide, top + wide), (left + wide / 2, top)),
                fill=fill,
            )


def _draw_bars(pen: ImageDraw.ImageDraw, parts: tuple[tuple[str | int, ...], ...]) -> None:
    ground, wide = SIDE - 1, SIDE // len(parts)
    pen.line((0, ground, ground, ground), fill=(0, 0, 0))
    for place, (colour, height) in enumerate(parts):
        pen.rectangle(
            (place * wide + 3, ground - int(height) * UNIT + UNIT // 2, (place + 1) * wide - 4, ground),
            fill=COLOURS[str(colour)],
        )


PICTURES = MadeTask(
    name="pictures",
    recipe=2,
    characters="0123456789abcdefghijklmnopqrstuvwxyz =#" + FILLER,
    warm_up_steps={"neutral": 600},
    problem=make_problem,
    demonstration=demonstration,
    curriculum=0.15,  # nothing grows; no earlier check could find a model fit
    rows_a_pass=16,
)
