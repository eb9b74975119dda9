"""Small random models and made rollouts for the tests of policy, rollout and training: built in milliseconds, no files."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from doubles.runs import SMALL_RUN
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.run import TrainRun
from luspo_cli.grading.verdict import Reason, Verdict
from luspo_cli.records import Message, Problem, Reward, Rollout, ScoredGroup, StopReason

VOCABULARY = 26

# A shell that starts the suite in the background ignores Ctrl-C for it and for all that it starts; the tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Read by the hub's client when it is imported: no test waits for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Nor does a command start again with another allocator where one is installed.
os.environ.setdefault("LUSPO_ALLOCATOR", "system")


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> None:
    """Accelerate keeps the first mixed precision of a process and refuses another one: forget it between tests."""
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state()


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """A training that was stopped leaves SIGTERM and SIGHUP ignored, and what a later test starts would inherit that."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def luspo(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the command line in an empty folder and gives (exit code, stdout, stderr)."""
    from luspo_cli.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUSPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LUSPO_DEBUG", raising=False)

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["luspo", *arguments])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        return code, *capfd.readouterr()

    return command


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """Return a function that builds a random Qwen2 model; `dtype` a name, `attention` ours unless told, grouped heads."""
    import torch

    from doubles.models import random_qwen2
    from luspo_cli.policy import attention as ours

    torch.set_num_threads(1)
    ours.register()

    def build(seed: int = 0, *, dtype: str = "float32", attention: str = ours.NAME, tied: bool = False) -> Any:
        shape = {"layers": 2, "heads": 4, "key_value_heads": 2}
        model = random_qwen2(VOCABULARY, seed=seed, tied=tied, attention=attention, spread=(0.5, 0.2), **shape)
        return model.to(getattr(torch, dtype)).eval()

    return build


@pytest.fixture(scope="session")
def made_tokenizer() -> Any:
    """The made task's tokenizer: 26 tokens, `<end>` is 1."""
    from luspo_cli.training.made.build import made_tokenizer

    return made_tokenizer(VOCABULARY)


@pytest.fixture(scope="session")
def make_groups() -> Callable[..., list[ScoredGroup]]:
    """Return a function from seed, response lengths [groups][rollouts] and advantages alike to scored groups."""
    import random

    def build(
        lengths: list[list[int]],
        advantages: list[list[float]],
        seed: int = 0,
        prompt_lengths: tuple[int, ...] = (4, 7, 5),
    ) -> list[ScoredGroup]:
        generator = random.Random(seed)
        groups = []
        for number, (sizes, values) in enumerate(zip(lengths, advantages, strict=True)):
            problem = Problem(f"p{number}", (Message("user", "a1="),), "1", "test")
            prompt = tuple(
                generator.randrange(2, VOCABULARY) for _ in range(prompt_lengths[number % len(prompt_lengths)])
            )
            rollouts = tuple(
                Rollout(
                    problem.id,
                    prompt,
                    tuple(generator.randrange(2, VOCABULARY) for _ in range(size)),
                    "",
                    StopReason.END,
                )
                for size in sizes
            )
            rewards = tuple(Reward(max(a, 0.0), 0.0, 0.0, 0.0, Verdict("0", False, Reason.DIFFERENT)) for a in values)
            groups.append(ScoredGroup(problem, rollouts, rewards, tuple(values)))
        return groups

    return build


@pytest.fixture(scope="session")
def made_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of made models for the whole session, also for subprocesses: one warm-up serves every run of a seed."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("LUSPO_CACHE")
    os.environ["LUSPO_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["LUSPO_CACHE"]
    else:
        os.environ["LUSPO_CACHE"] = before


@pytest.fixture(scope="session")
def small_run(made_cache: Path) -> Callable[..., TrainRun]:
    """Return a function from an objective and further assignments to the configuration of a small run."""

    def configure(*sets: str, objective: str = "luspo") -> TrainRun:
        return resolve_train(preset="tiny", objective=objective, sets=[*SMALL_RUN, *sets])

    return configure
