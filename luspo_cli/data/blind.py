"""The blind control: the same problems with other images, to tell what a model sees from what the text alone gives away.

`noise` puts random pixels of the same size in the place of every image. `other` shows the images of another problem with as many
images, of equal sizes where there are such, so that the prompt keeps its length and its looks and only what it shows is wrong.
Text and gold answer stay; a problem without images stays as it is.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from PIL import Image

from luspo_cli.config.evaluation import Blind
from luspo_cli.data.pictures import Illustrated, pictures
from luspo_cli.errors import UsageError
from luspo_cli.records import ImageSource

_SHOWN = 3


P = TypeVar("P", bound=Illustrated)


@dataclass(frozen=True, slots=True)
class NoiseImage:
    """Independent uniform pixels, as large as another image; the same ones for equal seed, problem and number."""

    image: ImageSource
    """The one that it stands for."""
    seed: int
    problem_id: str
    number: int
    """Of the image within its problem, counted from 0."""

    @property
    def name(self) -> str:
        return f"noise {self.seed} for image {self.number} of {self.problem_id}"

    def load(self) -> Image.Image:
        height, width = self.size()
        # A hash of any length: equal pixels on every machine and in every version.
        drawn = hashlib.shake_128(f"{self.seed} {self.number} {self.problem_id}".encode("utf-8", "surrogatepass"))
        return Image.frombytes("RGB", (width, height), drawn.digest(3 * height * width))

    def size(self) -> tuple[int, int]:
        """Height and width in pixels; raises UsageError where the image that it stands for does."""
        return self.image.size()


def blinded(problems: Sequence[P], how: Blind, seed: int) -> list[P]:
    """The problems in their order with the images of the blind control `how`; text and answers stay as they are.

    `other` decodes images of equal sizes once to know which are the same picture, and never shows a problem its own.

    Raises:
        UsageError: for `other`, problems for which no other problem has as many images and not the same ones; they are named.
    """
    if how == "none":
        return list(problems)
    if how == "noise":
        noise = [
            tuple(NoiseImage(image, seed, problem.id, number) for number, image in enumerate(problem.images))
            for problem in problems
        ]
        return [_showing(problem, images) for problem, images in zip(problems, noise, strict=True)]
    partners = _partners(problems, seed)
    alone = [problem.id for place, problem in enumerate(problems) if problem.images and place not in partners]
    if alone:
        more = f" and {len(alone) - _SHOWN} more" if len(alone) > _SHOWN else ""
        raise UsageError(
            f"blind = 'other' finds no problem with as many images, and other ones, for {', '.join(alone[:_SHOWN])}{more};"
            " take blind = 'noise'"
        )
    return [_showing(problem, problems[partners.get(place, place)].images) for place, problem in enumerate(problems)]


def _showing(problem: P, images: tuple[ImageSource, ...]) -> P:
    return cast(P, replace(cast(Any, problem), images=images))


def _partners(problems: Sequence[Illustrated], seed: int) -> dict[int, int]:
    """For the place of each problem with images the place of the one whose images it is shown; without those that have none."""
    known = pictures(problems)
    shown = [tuple(known[image.name] for image in problem.images) for problem in problems]
    groups: dict[int, list[int]] = defaultdict(list)
    for place, images in enumerate(shown):
        if images:
            groups[len(images)].append(place)
    draws = random.Random(f"blind {seed}")
    partners: dict[int, int] = {}
    for group in groups.values():
        of_sizes: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for place in group:
            of_sizes[tuple(size for size, _ in shown[place])].append(place)
        for members in of_sizes.values():
            partners |= _exchange(members, shown, draws)
        rest = [place for place in group if place not in partners]
        partners |= _exchange(rest, shown, draws)
        for place in rest:
            # Most of the rest show one picture: then others are shown more than once.
            others = [other for other in group if shown[other] != shown[place]]
            if place not in partners and others:
                partners[place] = draws.choice(others)
    return partners


def _exchange(members: Sequence[int], shown: Sequence[Hashable], draws: random.Random) -> Mapping[int, int]:
    """Each member's partner, every one of them taken once; empty where more than half of the members show the same."""
    most = max(Counter(shown[place] for place in members).values(), default=0)
    if 2 * most > len(members):
        return {}
    contents = sorted({shown[place] for place in members}, key=repr)
    draws.shuffle(contents)
    ranks = {content: rank for rank, content in enumerate(contents)}
    ordered = sorted(members, key=lambda place: ranks[shown[place]])
    # Problems that show the same stand together, at most `most` of them: so far ahead stands another picture.
    return {place: ordered[(at + most) % len(ordered)] for at, place in enumerate(ordered)}
