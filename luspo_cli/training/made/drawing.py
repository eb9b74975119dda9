"""Pictures as lines of numbers, drawn each time that they are asked for, and kept nowhere."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIDE = 64
"""Pixels, of all pictures: 16 image tokens where a token is 16 by 16 pixels."""
COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (240, 200, 30)}
SHADES = {"light": 0.5, "dark": 0.0}
"""Of a table's two columns, from left to right: how much white is in the ground of a line's colour."""
BLACK = (0, 0, 0)
CELLS, CELL = 4, SIDE // 4
"""Places for shapes, and lines of a table: so many in a row, and their side in pixels."""
UNIT = SIDE // 8
"""Pixels of a bar's height that stand for one."""
HOURS = 8
"""Of a clock, from 0, which is just right of the top: each stands in an image token of its own."""
DIAL, HAND = 28, 22
"""Pixels from the middle of a clock to its numbers, and to the ends of its hands."""
DIGITS = (
    "111101101101111", "001001001001001", "111001111100111", "111001111001111",
    "101101111001001", "111100111001111", "111100111101111", "111001001001001",
)  # fmt: skip
"""The digits 0 to 7 as three columns and five rows of dots."""

Parts = tuple[tuple[str | int, ...], ...]


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """A picture as what it shows."""

    kind: str
    parts: Parts
    """`shapes`: cell, colour, form, and how far right and down it is moved; `bars`: colour and height, from left to right;
    `clock`: colour and hour of each hand; `table`: colour and the two digits of each line, from above."""

    @property
    def name(self) -> str:
        return f"{self.kind} " + " ".join(",".join(map(str, part)) for part in self.parts)

    def load(self) -> Image.Image:
        """The picture, RGB."""
        image = Image.new("RGB", (SIDE, SIDE), "white")
        _PENS[self.kind](ImageDraw.Draw(image), self.parts)
        return image

    def size(self) -> tuple[int, int]:
        return SIDE, SIDE


def _draw_shapes(pen: ImageDraw.ImageDraw, parts: Parts) -> None:
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


def _draw_bars(pen: ImageDraw.ImageDraw, parts: Parts) -> None:
    ground, wide = SIDE - 1, SIDE // len(COLOURS)
    pen.line((0, ground, ground, ground), fill=BLACK)
    for place, (colour, height) in enumerate(parts):
        pen.rectangle(
            (place * wide + 3, ground - int(height) * UNIT + UNIT // 2, (place + 1) * wide - 4, ground),
            fill=COLOURS[str(colour)],
        )


def _draw_clock(pen: ImageDraw.ImageDraw, parts: Parts) -> None:
    for hour in range(HOURS):
        x, y = _towards(hour, DIAL)
        _draw_digit(pen, hour, round(x) - 3, round(y) - 5, 2)
    for colour, shown in parts:
        pen.line((SIDE // 2, SIDE // 2, *_towards(int(shown), HAND)), fill=COLOURS[str(colour)], width=6)
    pen.ellipse((SIDE // 2 - 3, SIDE // 2 - 3, SIDE // 2 + 3, SIDE // 2 + 3), fill=BLACK)


def _towards(hour: int, length: float) -> tuple[float, float]:
    """The point of the clock that lies so far from the middle."""
    angle = 2 * math.pi * (hour + 0.5) / HOURS
    return SIDE / 2 + length * math.sin(angle), SIDE / 2 - length * math.cos(angle)


def _draw_table(pen: ImageDraw.ImageDraw, parts: Parts) -> None:
    wide = SIDE // len(SHADES)
    for line, (colour, *digits) in enumerate(parts):
        for column, (digit, white) in enumerate(zip(digits, SHADES.values(), strict=True)):
            left, top = column * wide, line * CELL
            red, green, blue = (round(255 * white + value * (1 - white)) for value in COLOURS[str(colour)])
            pen.rectangle((left, top, left + wide - 1, top + CELL - 1), fill=(red, green, blue))
            _draw_digit(pen, int(digit), left + CELL + 4, top, 3)


def _draw_digit(pen: ImageDraw.ImageDraw, digit: int, left: int, top: int, dot: int) -> None:
    for place, inked in enumerate(DIGITS[digit]):
        x, y = left + place % 3 * dot, top + place // 3 * dot
        if inked == "1":
            pen.rectangle((x, y, x + dot - 1, y + dot - 1), fill=BLACK)


_PENS = {"shapes": _draw_shapes, "bars": _draw_bars, "clock": _draw_clock, "table": _draw_table}
