"""The blind control: noise as large as the image, another problem's image and never its own, the same ones each time."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
from PIL import Image

from doubles.vision import noise_image
from luspo_cli.data.blind import NoiseImage, blinded
from luspo_cli.data.images import ImageFile
from luspo_cli.errors import UsageError
from luspo_cli.records import ImageSource, Message, Problem


@dataclass(frozen=True)
class Plain:
    """An image of one colour; `name` says nothing about what it shows."""

    name: str
    colour: int = 0
    height: int = 4
    width: int = 6

    def load(self) -> Image.Image:
        return Image.new("RGB", (self.width, self.height), (self.colour, 0, 0))

    def size(self) -> tuple[int, int]:
        return self.height, self.width


def problem(name: str, *images: ImageSource) -> Problem:
    return Problem(name, (Message("user", "<image>" * len(images) + "?"),), name, "test", images)


def distinct(number: int, **size: int) -> list[Problem]:
    return [problem(f"p{n}", Plain(f"i{n}", n, **size)) for n in range(number)]


def pixels(image: ImageSource) -> bytes:
    return image.load().tobytes()


def test_noise_has_the_images_size_and_follows_seed_problem_and_number(tmp_path: Path) -> None:
    file = ImageFile(noise_image(tmp_path / "a.png", 50, 30))
    problems = [problem("a", file, file), problem("b", file), problem("c")]
    shown = blinded(problems, "noise", 3)
    first, second, other = [*shown[0].images, *shown[1].images]
    assert first.size() == (30, 50)
    assert first.load().size == (50, 30)
    assert first.load().mode == "RGB"
    assert len({pixels(first), pixels(second), pixels(other), pixels(file)}) == 4
    assert pixels(first) == pixels(blinded(problems, "noise", 3)[0].images[0])
    assert pixels(first) != pixels(blinded(problems, "noise", 4)[0].images[0])
    assert len({first.name, second.name, other.name, file.name}) == 4
    assert [(p.id, p.prompt, p.answer) for p in shown] == [(p.id, p.prompt, p.answer) for p in problems]
    assert shown[2] is not problems[2] or shown[2].images == ()


def test_noise_is_uniform_and_has_no_picture_in_it() -> None:
    """Mean 127.5 and variance (256^2 - 1) / 12 of a uniform byte, neighbours independent: within 5 standard errors."""
    values = numpy.asarray(NoiseImage(Plain("i", 0, 200, 300), 0, "p", 0).load(), dtype=float)
    number, variance = values.size, (256**2 - 1) / 12
    assert abs(values.mean() - 127.5) < 5 * (variance / number) ** 0.5
    assert abs(values.var() / variance - 1) < 0.02
    grey = values[:, :, 0] - 127.5
    assert abs((grey[:, 1:] * grey[:, :-1]).mean()) < 5 * variance / grey.size**0.5


def test_noise_is_small_and_travels_to_other_processes() -> None:
    image = NoiseImage(Plain("i", 0, 4000, 4000), 0, "p", 0)
    assert pickle.loads(pickle.dumps(image)) == image
    assert len(pickle.dumps(image)) < 1000


@pytest.mark.parametrize("number", [2, 3, 10, 101])
def test_other_is_a_derangement(number: int) -> None:
    problems = distinct(number)
    shown = blinded(problems, "other", 0)
    assert [p.id for p in shown] == [p.id for p in problems]
    assert sorted(p.images[0].name for p in shown) == sorted(p.images[0].name for p in problems)
    assert all(one.images != other.images for one, other in zip(shown, problems, strict=True))
    assert shown == blinded(problems, "other", 0)
    if number > 3:
        assert shown != blinded(problems, "other", 1)


def test_other_prefers_images_of_equal_sizes() -> None:
    problems = [problem(f"p{n}", Plain(f"i{n}", n, height=4 + n % 3)) for n in range(9)]
    problems += [problem("tall", Plain("tall", 1, 50)), problem("taller", Plain("taller", 1, 60))]
    shown = blinded(problems, "other", 0)
    for one, other in zip(shown[:9], problems[:9], strict=True):
        assert one.images[0].size() == other.images[0].size()
        assert one.images != other.images
    assert [p.images[0].name for p in shown[9:]] == ["taller", "tall"]


def test_other_takes_problems_with_as_many_images() -> None:
    pairs = [problem(f"q{n}", Plain(f"a{n}", n), Plain(f"b{n}", 100 + n)) for n in range(4)]
    shown = blinded([*distinct(3), *pairs, problem("text")], "other", 0)
    assert [len(p.images) for p in shown] == [1, 1, 1, 2, 2, 2, 2, 0]
    own = {p.id: p.images for p in pairs}
    assert all(p.images in own.values() and p.images != own[p.id] for p in shown[3:7])


def test_other_never_shows_the_same_picture_under_another_name() -> None:
    """Six problems about two pictures, three each, every one in a file of its own: each is shown the other picture."""
    problems = [problem(f"p{n}", Plain(f"file{n}", n % 2)) for n in range(6)]
    for seed in range(5):
        for own, shown in zip(problems, blinded(problems, "other", seed), strict=True):
            assert pixels(own.images[0]) != pixels(shown.images[0])


def test_other_shows_a_picture_twice_where_most_problems_have_the_same() -> None:
    problems = [problem(f"p{n}", Plain("same", 1)) for n in range(5)] + [problem("q", Plain("else", 2, 9))]
    shown = blinded(problems, "other", 0)
    assert [p.images[0].name for p in shown] == ["else"] * 5 + ["same"]


def test_other_names_problems_without_a_partner() -> None:
    lone = problem("lone", Plain("a", 1), Plain("b", 2))
    with pytest.raises(UsageError, match=r"blind = 'other' finds no problem .* for lone; take blind = 'noise'"):
        blinded([*distinct(3), lone], "other", 0)
    same = [problem(f"p{n}", Plain(f"copy{n}", 7)) for n in range(5)]
    with pytest.raises(UsageError, match="for p0, p1, p2 and 2 more"):
        blinded(same, "other", 0)


def test_other_decodes_only_images_that_may_be_equal() -> None:
    decoded = []

    @dataclass(frozen=True)
    class Watched(Plain):
        def load(self) -> Image.Image:
            decoded.append(self.name)
            return super().load()

    blinded([problem(f"p{n}", Watched(f"i{n}", n, height=4 + max(n, 1))) for n in range(4)], "other", 0)
    assert sorted(decoded) == ["i0", "i1"]  # of equal size


def test_a_broken_image_is_named_with_its_problem(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"problem 'bad': the image 'broken.png' .* cannot be read"):
        blinded([*distinct(2), problem("bad", ImageFile(tmp_path / "broken.png"))], "other", 0)


def test_none_leaves_everything_as_it_is() -> None:
    problems = distinct(3)
    assert blinded(problems, "none", 0) == problems
