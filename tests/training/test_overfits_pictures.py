"""A small Qwen2.5-VL is trained on 20 pictures until every reward is 1, and it looks: exchanged pictures exchange answers.

The model starts from demonstrations of which four in five say any answer, so near chance; `luspo train` does the rest. Five
questions are each asked about pictures of four colours, so that a question alone says nothing of its answer.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch
from typer.testing import CliRunner

from doubles.runs import SMALL_VISION_RUN, records
from doubles.vision import colour_image
from luspo_cli.app import app
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.model import ModelConfig
from luspo_cli.data.blind import blinded
from luspo_cli.data.problems import load_problems
from luspo_cli.policy.loading import LoadedModel, load_model
from luspo_cli.records import Problem
from luspo_cli.rewards.exact import score_exact
from luspo_cli.rollout.in_process.sampler import InProcessSampler
from luspo_cli.rollout.sampler import SamplingOptions
from luspo_cli.training.made.build import new_model
from luspo_cli.training.made.from_file import task_of_file
from luspo_cli.training.made.warmup import warm_up

COLOURS = ((220, 40, 40), (40, 170, 60), (50, 80, 220), (240, 200, 30))
ANSWERS = ("1", "2", "3", "4")
QUESTIONS = ("what color is this?", "which color?", "name the color", "color =", "and what is this?")
STEPS = 40
NEAR_CHANCE = 0.55
"""Of 20 problems with four answers: three standard errors above a quarter."""
RL = (
    "rollout.problems=20", "rollout.group_size=8", "rollout.max_rows=160", "rollout.max_response_tokens=8",
    "rollout.temperature=0.7", "update.mini_batches=4", "update.learning_rate=2e-3", "update.gradient_clip=0.3",
    "update.tokens_per_micro_batch=4096", "update.noise_floor_every=0", f"evaluation.every={STEPS}",
    "evaluation.problems=20", "evaluation.samples=1", "evaluation.temperature=0",
    "evaluation.blind=other", f"run.steps={STEPS}", "run.checkpoint_every=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty problems, and a model that says one of the four answers, seldom the right one."""
    folder = tmp_path_factory.mktemp("pictures")
    data, draws, rows = folder / "data", random.Random(0), []
    data.mkdir()
    for number, (question, colour) in enumerate(itertools.product(QUESTIONS, range(4))):
        red, green, blue = (value + draws.randint(-15, 15) for value in COLOURS[colour])
        rows.append(
            {
                "data_source": "test",
                "prompt": [{"role": "user", "content": f"<image>{question}"}],
                "images": [colour_image(data / f"{number}.png", (red, green, blue), 64, 64).name],
                "reward_model": {"style": "rule", "ground_truth": ANSWERS[colour]},
            }
        )
    for split in ("train", "test"):
        pandas.DataFrame(rows).to_parquet(data / f"{split}.parquet")
    shape = [setting for setting in SMALL_VISION_RUN if "shape" in setting]
    own = [f"data.train={data}", f"data.held_out={data}", "rollout.max_response_tokens=8", "warmup.steps=50"]
    own += ["warmup.rows=16", "warmup.learning_rate=1e-2", "warmup.ramp_steps=3", "warmup.check_every=1000"]
    config = resolve_train(preset="tiny-vl", objective="grpo", sets=[*shape, *own])

    def demonstration(problem: Problem, profile: str, generator: random.Random, share: float) -> str:
        return "#" + (problem.answer if generator.random() < 0.2 else generator.choice(ANSWERS))

    task = replace(task_of_file(load_problems(data), str(data)), demonstration=demonstration)
    torch.set_num_threads(1)
    loaded = new_model(config.model.shape, task.characters, 0)
    warm_up(loaded, task, config)
    assert loaded.processor is not None
    loaded.model.save_pretrained(folder / "model")
    loaded.processor.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    sets = (f"model.path={folder / 'model'}", f"data.train={folder / 'data'}", f"data.held_out={folder / 'data'}", *RL)
    words = ["train", "--preset", "tiny", "--objective", "grpo", "--run", str(folder / "run")]
    words += [word for setting in sets for word in ("--set", setting)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder / "run"


@pytest.fixture(scope="module")
def trained(run: Path) -> LoadedModel:
    return load_model(ModelConfig(path=str(run / f"checkpoints/step-{STEPS:06d}/model")))


def answers(loaded: LoadedModel, problems: Sequence[Problem]) -> Iterator[str | None]:
    """What the model says to each problem when it takes the most probable token each time."""
    sampler = InProcessSampler(loaded.model, loaded.tokenizer, loaded.end_tokens, max_rows=100)
    prompts = [loaded.prompt(problem) for problem in problems]
    for problem, (rollout,) in zip(problems, sampler.sample_groups(prompts, SamplingOptions(1, 8, 0.0)), strict=True):
        yield score_exact(rollout.response, problem.answer, ended=not rollout.truncated).extracted


def exchanged(loaded: LoadedModel, problems: Sequence[Problem]) -> tuple[int, int]:
    """Of all pairs of problems with different answers, how many exchange their answers with their pictures; and all."""
    asked = [replace(one, images=other.images) for one in problems for other in problems]
    said = iter(answers(loaded, asked))
    found = [[next(said) for _ in problems] for _ in problems]
    pairs = [
        pair for pair in itertools.combinations(range(len(problems)), 2) if len({problems[n].answer for n in pair}) == 2
    ]
    gold = [problem.answer for problem in problems]
    good = [
        [found[a][a], found[b][b], found[a][b], found[b][a]] == [gold[a], gold[b], gold[b], gold[a]] for a, b in pairs
    ]
    return sum(good), len(good)


def right(loaded: LoadedModel, problems: Sequence[Problem]) -> float:
    said = answers(loaded, problems)
    return sum(one == problem.answer for one, problem in zip(said, problems, strict=True)) / len(problems)


def test_reward_ends_at_1(run: Path) -> None:
    before, after = (json.loads(line) for line in (run / "evals/held-out.jsonl").read_text().splitlines())
    rewards = [step["reward/accuracy/mean"] for step in records(run)]
    assert rewards[0] <= NEAR_CHANCE
    assert max(rewards[-10:]) == 1.0  # all 160 sampled responses of a step
    assert sum(rewards[-10:]) / 10 > 0.95
    assert before["evaluation/blind_accuracy"] <= NEAR_CHANCE
    assert after["evaluation/accuracy"] == 1.0
    assert after["evaluation/blind_accuracy"] <= NEAR_CHANCE


def test_exchanged_pictures_exchange_answers(folder: Path, trained: LoadedModel) -> None:
    """All pairs with different answers: 6 pairs of answers, 5 x 5 problems each."""
    assert exchanged(trained, load_problems(folder / "data")) == (150, 150)


def test_a_model_that_ignores_pictures_exchanges_nothing(
    folder: Path, trained: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same model with noise for its pictures, and with a tower that says the same of every picture."""
    problems = load_problems(folder / "data")
    assert right(trained, problems) == 1.0
    assert right(trained, blinded(problems, "noise", 0)) <= NEAR_CHANCE
    weights = trained.model.model.visual.merger.mlp[-1]
    monkeypatch.setattr(weights, "weight", torch.nn.Parameter(torch.zeros_like(weights.weight)))
    assert right(trained, problems) <= NEAR_CHANCE
    assert exchanged(trained, problems) == (0, 150)
