"""The made task with pictures: the picture says the answer, is a function of its spec, and a whole run reads it as any image."""

from __future__ import annotations

import json
import pickle
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from doubles.runs import SMALL_VISION_RUN, records, train, weight_bytes
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.model import ModelConfig
from luspo_cli.config.run import MADE_TASKS, PICTURE_KINDS, TrainRun
from luspo_cli.errors import UsageError
from luspo_cli.policy.loading import LoadedModel, load_model
from luspo_cli.records import Problem
from luspo_cli.training.dry_run import make_plan
from luspo_cli.training.made.build import MOST_IMAGE_TOKENS, new_model
from luspo_cli.training.made.drawing import COLOURS, SIDE, DrawnImage
from luspo_cli.training.made.model import made_model
from luspo_cli.training.made.pictures import PICTURES
from luspo_cli.training.made.task import MadeBatches, made_held_out
from luspo_cli.training.made.tasks import TASKS
from luspo_cli.training.made.warmup import demonstrations


def small_run(*sets: str) -> TrainRun:
    return resolve_train(preset="tiny-vl", objective="luspo", sets=[*SMALL_VISION_RUN, *sets])


def problems(number: int, seed: int = 0, task: str = "made:pictures") -> list[Problem]:
    generator = random.Random(seed)
    return [TASKS[task].problem("neutral", generator, str(i), 1.0) for i in range(number)]


def pixels(image: DrawnImage) -> numpy.ndarray:
    return numpy.asarray(image.load()).astype(int)


def seen(problem: Problem) -> int:
    """The answer as the pixels show it, read independently of how the picture was made."""
    (image,), text = problem.images, problem.prompt[0].content
    assert isinstance(image, DrawnImage)
    kind, *column, colour = text.removeprefix("<image>").removesuffix("=").split()
    shown = pixels(image)
    return {"count": count, "bar": bar, "clock": clock, "cell": cell}[kind](
        shown, numpy.array(COLOURS[colour]), *column
    )


def parts(mask: numpy.ndarray) -> list[numpy.ndarray]:
    """The points of each connected part."""
    left, found = set(map(tuple, numpy.argwhere(mask).tolist())), []
    while left:
        part = [left.pop()]
        for row, column in part:  # grows on the way
            around = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= around
            part += around
        found.append(numpy.array(part))
    return found


def count(shown: numpy.ndarray, colour: numpy.ndarray) -> int:
    return len(parts((shown == colour).all(-1)))


def bar(shown: numpy.ndarray, colour: numpy.ndarray) -> int:
    """Of a bar that is 7 units of 8 pixels at most."""
    rows = numpy.flatnonzero((shown == colour).all(-1).any(1))
    return round((rows.max() - rows.min() + 1 + SIDE // 16) / (SIDE / 8))


def clock(shown: numpy.ndarray, colour: numpy.ndarray) -> int:
    """The number that is nearest to the end of the hand."""
    hand = numpy.argwhere((shown == colour).all(-1))
    end = hand[numpy.hypot(*(hand - (SIDE - 1) / 2).T) > 18].mean(0)
    numbers = [part for part in parts((shown == 0).all(-1)) if numpy.hypot(*(part - SIDE // 2).T).min() > 18]
    return digit(min(numbers, key=lambda part: numpy.hypot(*(part - end).T).min()))


def cell(shown: numpy.ndarray, colour: numpy.ndarray, column: str) -> int:
    """The digit within the ground of the line's colour."""
    ground = (colour + 255) / 2 if column == "light" else colour
    rows, columns = numpy.nonzero((abs(shown - ground) < 1).all(-1))
    inside = (shown == 0).all(-1)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return digit(numpy.argwhere(inside))


def digit(points: numpy.ndarray) -> int:
    """By which of the seven segments are black, of a digit whose width is three fifths of its height."""
    (high, _), (low, right) = points.min(0), points.max(0)
    half, wide = (low - high) // 2, (low - high + 1) * 3 // 5
    left, middle = right - wide + 1, right - wide // 2
    segments = {
        "top": (high, middle), "upper left": (high + half // 2, left), "upper right": (high + half // 2, right),
        "middle": (high + half, middle), "lower left": (low - half // 2, left), "lower right": (low - half // 2, right),
        "bottom": (low, middle),
    }  # fmt: skip
    black = set(map(tuple, points.tolist()))
    out = {name for name, point in segments.items() if point not in black}
    missing: list[set[str]] = [
        {"middle"}, set(segments) - {"upper right", "lower right"}, {"upper left", "lower right"}, {"upper left", "lower left"},
        {"top", "lower left", "bottom"}, {"upper right", "lower left"}, {"upper right"},
        set(segments) - {"top", "upper right", "lower right"},
    ]  # fmt: skip
    return missing.index(out)


@pytest.mark.parametrize("kind", PICTURE_KINDS)
def test_the_picture_shows_the_gold_answer(kind: str) -> None:
    for problem in problems(400, task=f"made:pictures/{kind}"):
        assert problem.answer == str(seen(problem)), problem.images[0].name


@pytest.mark.parametrize(
    ("kind", "answers"), [("shapes", "0123456"), ("bars", "1234567"), ("clock", "01234567"), ("table", "01234567")]
)
def test_without_the_picture_no_digit_is_right_often(kind: str, answers: str) -> None:
    """All are equally likely: a question alone is answered right one time in seven or eight."""
    by_question: dict[str, Counter[str]] = {}
    for problem in problems(4000, task=f"made:pictures/{kind}"):
        by_question.setdefault(problem.prompt[0].content, Counter())[problem.answer] += 1
    assert len(by_question) == len(COLOURS) * (2 if kind == "table" else 1)  # its two columns
    for found in by_question.values():
        assert "".join(sorted(found)) == answers
        assert max(found.values()) / found.total() < 1 / len(answers) + 0.05


def test_the_mix_is_of_three_kinds_equally_often() -> None:
    kinds = Counter(problem.extra["category"] for problem in problems(3000))
    assert set(kinds) == {"shapes", "bars", "clock"}
    assert min(kinds.values()) / kinds.total() > 0.3


def test_each_kind_of_picture_is_a_task_by_its_name() -> None:
    assert set(TASKS) == set(MADE_TASKS)
    for kind in PICTURE_KINDS:
        task = TASKS[f"made:pictures/{kind}"]
        drawn = made_held_out(task, "neutral", 20, 0)
        assert {problem.extra["category"] for problem in drawn} == {kind}
        assert drawn[0].id == f"pictures/{kind}/held-out/0/0"
        assert task.characters == PICTURES.characters


def test_a_drawn_image_is_a_function_of_its_spec() -> None:
    first = problems(1)[0].images[0]
    again = pickle.loads(pickle.dumps(first))
    assert again == first
    assert first.name == again.name
    assert first.load().tobytes() == again.load().tobytes()
    assert first.load().mode == "RGB"
    assert first.size() == (first.load().height, first.load().width) == (SIDE, SIDE)
    for kind in PICTURE_KINDS:
        shown = {problem.images[0] for problem in problems(150, task=f"made:pictures/{kind}")}
        assert (
            len({image.name for image in shown}) == len({image.load().tobytes() for image in shown}) == len(shown) > 120
        )


def test_batches_reserve_and_held_out_are_streams_of_their_own() -> None:
    source = MadeBatches(PICTURES, "neutral", 8, 3)
    assert source.batch(5) == MadeBatches(PICTURES, "neutral", 8, 3).batch(5)
    assert source.reserve(5, 0, 4) == [*source.reserve(5, 0, 2), *source.reserve(5, 2, 2)]
    held_out = made_held_out(PICTURES, "neutral", 40, 3)
    assert held_out[:20] == made_held_out(PICTURES, "neutral", 20, 3)
    drawn = [*source.batch(5), *source.batch(6), *source.reserve(5, 0, 8), *held_out]
    assert len({problem.id for problem in drawn}) == len(drawn)
    assert len({problem.images for problem in drawn}) > len(drawn) - 6  # few pictures are alike by chance


@pytest.fixture
def loaded() -> LoadedModel:
    return new_model(small_run().model.shape, PICTURES.characters, 0)


def test_a_prompt_is_the_picture_between_its_marks_and_the_question(loaded: LoadedModel) -> None:
    problem = problems(1)[0]
    prompt = loaded.prompt(problem)
    text = loaded.tokenizer.decode(prompt.tokens)
    question = problem.prompt[0].content.removeprefix("<image>")
    assert text == "<|vision_start|>" + "<|image_pad|>" * 16 + "<|vision_end|>" + question
    assert loaded.prompt_length(problem) == len(prompt.tokens)
    assert prompt.image_inputs is not None
    assert prompt.image_inputs["image_grid_thw"].tolist() == [[1, 8, 8]]
    assert prompt.image_inputs["pixel_values"].shape == (64, 3 * 2 * 8 * 8)


def test_early_demonstrations_are_short() -> None:
    problem, lengths = problems(1)[0], []
    for share in (0.0, 0.25, 1.0):
        generator = random.Random(0)
        texts = [PICTURES.demonstration(problem, "neutral", generator, share) for _ in range(2000)]
        assert all(text.strip(".") == f"#{problem.answer}" for text in texts)
        lengths.append(sum(map(len, texts)) / len(texts) - 2)
    assert lengths[0] == 0
    assert lengths[1] == pytest.approx(23 / 4, abs=0.6)  # four standard errors of a geometric mean
    assert lengths[2] == pytest.approx(23 * (1 - (23 / 24) ** 80), abs=2.1)  # cut at 80


def test_larger_images_are_resized_to_few_tokens(loaded: LoadedModel) -> None:
    reader = loaded.processor.image_processor  # type: ignore[union-attr]
    for height, width in ((1000, 1000), (100, 2000), (64, 64), (5, 9)):
        assert 4 <= reader.get_number_of_image_patches(height, width, {}) / 4 <= MOST_IMAGE_TOKENS


def test_the_default_model_is_small() -> None:
    shape = resolve_train(preset="tiny-vl", objective="luspo").model.shape
    model = new_model(shape, PICTURES.characters, 0).model
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert sum(weight.numel() for weight in model.parameters()) == shape.parameters() <= 1_000_000


def test_passes_of_a_warm_up_add_up_to_one(loaded: LoadedModel) -> None:
    """The gradient of rows in several passes, sorted by length, is that of all at once (bfloat16 passes)."""
    import torch

    from luspo_cli.config.warmup import WarmupConfig
    from luspo_cli.training.made.warmup import _backward

    rows = demonstrations(loaded, PICTURES, "neutral", random.Random(0), 12)
    found = []
    for a_pass in (12, 5):
        loaded.model.zero_grad()
        _backward(loaded, rows, a_pass, WarmupConfig(answer_weight=3.0))
        found.append(torch.cat([weight.grad.flatten() for weight in loaded.model.parameters()]))
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.999
    assert found[0].norm() == pytest.approx(float(found[1].norm()), rel=0.02)


def test_a_whole_run_on_pictures_resumes_bit_for_bit(made_cache: Path, tmp_path: Path) -> None:
    config = small_run()
    train(config, tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path / "part", crash_after=1)
    train(config, tmp_path / "part", "resume")
    assert weight_bytes(tmp_path / "whole", 2) == weight_bytes(tmp_path / "part", 2)
    assert [record["step"] for record in records(tmp_path / "whole")][-1] == 2
    checkpoint = load_model(ModelConfig(path=str(tmp_path / "whole/checkpoints/step-000002/model")))
    assert checkpoint.processor is not None
    problem = problems(1)[0]
    again = load_model(ModelConfig(path=str(made_model(config))))
    assert again.prompt(problem).tokens == checkpoint.prompt(problem).tokens


def test_the_cache_tells_pictures_from_text(made_cache: Path) -> None:
    folder = made_model(small_run())
    report = json.loads((folder / "warmup.json").read_text())
    assert report["made_from"]["task"] == "pictures"
    assert (folder / "preprocessor_config.json").is_file()
    assert made_model(small_run("run.steps=9")) == folder
    assert made_model(small_run("model.shape.vision.feed_forward=24")) != folder


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        (["data.train=made:terms", "data.held_out=made:terms"], "belong together"),
        (["data.profile=pays"], "data.profile is for data.train = 'made:terms' alone"),
        (["data.shuffle=false"], "data.train = 'made:pictures', which makes every batch anew"),
        (
            ["data.train=made:pictures/clok"],
            "data.train = 'made:pictures/clok' is no made task: choose one of made:terms, ",
        ),
        (["data.held_out=made:picture"], "data.held_out = 'made:picture' is no made task"),
    ],
)
def test_settings_that_do_not_fit(sets: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        small_run(*sets)


def test_the_text_preset_has_no_pictures() -> None:
    with pytest.raises(UsageError, match="belong together"):
        resolve_train(preset="tiny", objective="luspo", sets=["data.train=made:pictures"])


def test_the_dry_run_knows_the_task(luspo: Callable[..., Any]) -> None:
    plan = make_plan(small_run())
    assert plan.missing == []
    code, out, _ = luspo("train", "--preset", "tiny-vl", "--dry-run")
    assert code == 0
    assert "nothing is missing" in out
