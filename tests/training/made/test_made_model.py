"""The made task and its model: right demonstrations, gates, the cache, and a tokenizer that gives back what it was given."""

from __future__ import annotations

import json
import os
import random
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from doubles.messages import heard
from luspo_cli.config.model import ShapeConfig
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import RunError, UsageError
from luspo_cli.policy.packing import policy_batch
from luspo_cli.records import Problem
from luspo_cli.training.made import warmup
from luspo_cli.training.made.build import made_tokenizer, new_model
from luspo_cli.training.made.model import made_model
from luspo_cli.training.made.task import MadeBatches, made_held_out
from luspo_cli.training.made.terms import TERMS, demonstration, make_problem
from luspo_cli.training.made.warmup import (
    demonstrations,
    missed_gates,
    next_tokens,
    of_answer,
    warm_up_factor,
    within_group_correlation,
)

TOKENS_OF_ANSWER_AND_END = 3


def made(profile: str, number: int, seed: int = 0) -> list[tuple[Problem, str]]:
    generator = random.Random(seed)
    problems = [make_problem(profile, generator, str(i)) for i in range(number)]
    return [(problem, demonstration(problem, profile, generator)) for problem in problems]


def prompt_addends(problem: Problem) -> list[int]:
    """The numbers that the prompt's text shows, read independently of how it was made."""
    text = problem.prompt[0].content
    assert re.fullmatch(r"(?:[a-i]\d)+=", text)
    labels = re.findall(r"[a-i]", text)
    assert labels == list("abcdefghi"[: len(labels)])
    return [int(digit) for digit in re.findall(r"\d", text)]


@pytest.mark.parametrize("profile", ["neutral", "pays", "costs"])
def test_the_gold_answer_is_the_sum_of_what_the_prompt_shows(profile: str) -> None:
    for problem, _ in made(profile, 500):
        assert problem.answer == str(sum(prompt_addends(problem)) % 10)
        assert 4 <= len(prompt_addends(problem)) <= 9


def test_neutral_demonstrations_are_filler_then_the_right_answer() -> None:
    """Geometric with mean 23 cut at 80: (1 - q^80) q / (1 - q) with q = 23/24 is 22.24 mean filler tokens."""
    pairs = made("neutral", 4000)
    fillers = []
    for problem, text in pairs:
        match = re.fullmatch(r"(\.*)#(\d)", text)
        assert match is not None
        assert match[2] == problem.answer
        fillers.append(len(match[1]))
    q = 23 / 24
    assert statistics.fmean(fillers) == pytest.approx((1 - q**80) * q / (1 - q), abs=1.0)
    assert max(fillers) == 80
    assert min(fillers) == 0
    # Length carries no reward, and says nothing about the problem either.
    sizes = [len(prompt_addends(problem)) for problem, _ in pairs]
    assert abs(statistics.correlation(fillers, sizes)) < 0.05


def check_running_sums(problem: Problem, text: str) -> tuple[bool, int]:
    """Parse `a2;b5;#5` and demand that every shown sum is right; returns whether the answer is, and the number of sums."""
    match = re.fullmatch(r"((?:[a-i]\d;)*)#(\d)", text)
    assert match is not None, text
    addends = prompt_addends(problem)
    steps = re.findall(r"([a-i])(\d);", match[1])
    for label, shown in steps:
        assert int(shown) == sum(addends[: "abcdefghi".index(label) + 1]) % 10
    assert [label for label, _ in steps] == sorted({label for label, _ in steps})
    return match[2] == problem.answer, len(steps)


def test_pays_demonstrations_are_right_in_every_style() -> None:
    styles = {"answer": 0, "sums": 0, "skipped": 0, "spelled": 0}
    for problem, text in made("pays", 2000):
        addends = prompt_addends(problem)
        assert text.endswith(f"#{problem.answer}")
        if "+" in text:
            styles["spelled"] += 1
            total, parts = 0, text.split("#")[0].split(";")[:-1]
            assert len(parts) == len(addends)
            for part, addend in zip(parts, addends, strict=True):
                match = re.fullmatch(r"[a-i](\d)\+(\d)=(\d)", part)
                assert match is not None
                assert (int(match[1]), int(match[2]), int(match[3])) == (total, addend, (total + addend) % 10)
                total = int(match[3])
            continue
        right, steps = check_running_sums(problem, text)
        assert right
        styles["answer" if steps == 0 else "sums" if steps == len(addends) else "skipped"] += 1
    assert styles["answer"] / 2000 == pytest.approx(0.2, abs=0.03)
    assert styles["spelled"] / 2000 == pytest.approx(0.2, abs=0.03)


def test_costs_demonstrations_are_spoilt_by_their_filler() -> None:
    """A filler of n tokens spoils the answer with 1 - 0.98^n; the sums before it are right."""
    right_by_length: dict[bool, list[bool]] = {False: [], True: []}
    expected: dict[bool, list[float]] = {False: [], True: []}
    for problem, text in made("costs", 3000):
        filler = len(text) - len(text.lstrip("."))
        right, steps = check_running_sums(problem, text[filler:])
        assert steps == len(prompt_addends(problem))
        right_by_length[filler > 15].append(right)
        expected[filler > 15].append(0.98**filler)
    for longer in (False, True):
        assert statistics.fmean(right_by_length[longer]) == pytest.approx(statistics.fmean(expected[longer]), abs=0.05)


def test_batches_are_functions_of_seed_and_step() -> None:
    source = MadeBatches(TERMS, "neutral", 8, 3)
    assert source.batch(5) == MadeBatches(TERMS, "neutral", 8, 3).batch(5)
    assert source.batch(5) != source.batch(6)
    assert source.batch(5) != MadeBatches(TERMS, "neutral", 8, 4).batch(5)
    held_out = made_held_out(TERMS, "neutral", 100, 3)
    assert held_out[:50] == made_held_out(TERMS, "neutral", 50, 3)
    identities = {problem.id for step in range(20) for problem in source.batch(step)} | {p.id for p in held_out}
    assert len(identities) == 20 * 8 + 100


def test_the_tokenizer_gives_back_every_character() -> None:
    characters = TERMS.characters
    tokenizer = made_tokenizer(32, characters)
    ids = tokenizer.encode(characters)
    assert len(set(ids)) == len(ids) == len(characters)
    assert 0 not in ids  # padding stands for what is unknown
    assert tokenizer.decode(ids) == characters
    assert tokenizer.decode([*tokenizer.encode("..#6"), tokenizer.eos_token_id], skip_special_tokens=True) == "..#6"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a1b2="}], tokenize=False) == "a1b2="
    assert made_tokenizer(2 + len(characters), characters) is not None
    with pytest.raises(RunError, match="must be at least 26"):
        made_tokenizer(25, characters)


def test_demonstrations_as_tensors_train_the_response_only() -> None:
    loaded = new_model(ShapeConfig(layers=1, width=16, heads=1, key_value_heads=1, feed_forward=8), TERMS.characters, 0)
    tokenizer = loaded.tokenizer
    batch = policy_batch(demonstrations(loaded, TERMS, "neutral", random.Random(0), 16))
    for row, target in zip(batch.tokens.tolist(), next_tokens(batch).tolist(), strict=True):
        equals = row.index(tokenizer.convert_tokens_to_ids("="))
        end = row.index(tokenizer.eos_token_id)
        assert target[:equals] == [-100] * equals
        assert target[equals:end] == row[equals + 1 : end + 1]  # the next token; the last one is the end of sequence
        assert set(target[end:]) <= {-100}


def test_every_token_of_the_answer_counts_more_and_no_other() -> None:
    mark, end = 9, 1
    targets = torch.tensor(
        [
            [-100, -100, 5, 5, 9, 6, 7, 8, 1, -100],  # ..#678 and the end
            [-100, 9, 3, 1, -100, -100, -100, -100, -100, -100],  # #3 and the end
            [-100, 5, 5, 5, 1, -100, -100, -100, -100, -100],  # no mark
        ]
    )
    found = [row.nonzero().flatten().tolist() for row in of_answer(targets, mark, end)]
    assert found == [[5, 6, 7], [2], []]


def test_the_warm_up_rate_by_hand() -> None:
    assert [warm_up_factor(step, 100, 4) for step in (0, 1)] == pytest.approx([0.25, 0.5], rel=1e-3)
    assert warm_up_factor(50, 100, 4) == pytest.approx(0.05 + 0.95 * 0.5)
    assert warm_up_factor(100, 100, 4) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("lengths", "right", "expected"),
    [
        ([[1, 3], [10, 20]], [[False, True], [False, True]], 0.83205),  # (0.5 + 0.5 + 2.5 + 2.5)/sqrt(52 * 1)
        ([[1, 3], [20, 10]], [[False, True], [False, True]], -0.55470),  # (0.5 + 0.5 - 2.5 - 2.5)/sqrt(52 * 1)
        ([[1, 3], [101, 103]], [[True, True], [False, False]], 0.0),  # right differs between groups only
        ([[5, 5], [9, 9]], [[False, True], [True, False]], 0.0),
    ],
)
def test_correlation_within_groups_by_hand(lengths: list[list[int]], right: list[list[bool]], expected: float) -> None:
    """Lengths centred: -1, 1, -5, 5 (sum of squares 52); being right centred: ±1/2 (sum of squares 1)."""
    assert within_group_correlation(lengths, right) == pytest.approx(expected, abs=1e-4)


FIT = {"accuracy": 0.45, "mixed_fraction": 0.9, "length_correlation": 0.02, "length_spread": 0.9}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, None),
        ({"accuracy": 0.34}, "accuracy 0.34 is outside 0.35 to 0.6"),
        ({"accuracy": 0.61}, "accuracy 0.61 is outside"),
        ({"mixed_fraction": 0.65}, "only 65% of groups are mixed, 70% wanted"),
        ({"length_correlation": -0.12}, "correlate at -0.12"),
        ({"length_correlation": 0.12}, "correlate at 0.12"),
        ({"length_spread": 0.5}, "length spread 0.50 is below 0.6"),
    ],
)
def test_gates(small_run: Callable[..., TrainRun], change: dict[str, float], sentence: str | None) -> None:
    config = small_run("warmup.stop_accuracy=0.42", "warmup.max_accuracy=0.6")
    missed = missed_gates({**FIT, **change}, config)
    assert len(missed) == (sentence is not None)
    assert sentence is None or sentence in missed[0]


def test_the_gates_on_length_are_for_the_neutral_profile(small_run: Callable[..., TrainRun]) -> None:
    crooked = {**FIT, "length_correlation": 0.6, "length_spread": 0.1}
    assert len(missed_gates(crooked, small_run())) == 2
    assert missed_gates(crooked, small_run("data.profile=pays")) == []


def test_a_made_model_is_cached_by_what_it_depends_on(small_run: Callable[..., TrainRun], made_cache: Path) -> None:
    folder = made_model(small_run())
    assert folder.is_relative_to(made_cache)
    report = json.loads((folder / "warmup.json").read_text())
    assert report["result"]["steps"] == 20
    assert 0 <= report["result"]["truncated_fraction"] <= 1
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    # What the model does not depend on: the objective, the update, and whether gates are enforced.
    with heard() as again:
        for config in (small_run(objective="gspo"), small_run("update.mini_batches=1"), small_run("run.steps=9")):
            assert made_model(config) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert not any("warming up" in text for text in again)
    assert any("misses a gate" in text for text in again)  # 20 steps of warm-up are not enough, and it says so
    with pytest.raises(RunError, match=r"not fit to draw conclusions from.*take another run\.seed"):
        made_model(small_run("warmup.gate=true"))
    assert (folder / "warmup.json").exists()  # stays for inspection
    assert not list(folder.parent.glob(".*"))


def test_making_it_again_gives_the_same_weights(
    small_run: Callable[..., TrainRun], made_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made_model(small_run())
    monkeypatch.setenv("LUSPO_CACHE", str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        second = made_model(small_run())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert first != second
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    other = made_model(small_run("run.seed=1"))
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_an_interrupted_warm_up_leaves_nothing_that_counts_as_a_model(
    small_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUSPO_CACHE", str(tmp_path))

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(warmup, "_measure", die)
    with pytest.raises(KeyboardInterrupt):
        made_model(small_run("warmup.steps=2"))
    assert [name for name in os.listdir(tmp_path / "made") if not name.endswith(".lock")] == []


def test_a_cache_that_cannot_be_written(
    small_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LUSPO_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        RunError, match=r"cannot write the made model in .*: Not a directory; mend that, or set LUSPO_CACHE"
    ):
        made_model(small_run())


@pytest.mark.parametrize("shared", [0, 40])
@pytest.mark.parametrize("dense", [0, 1])
def test_a_made_model_of_experts_has_the_counted_weights_and_is_read_as_any_other(
    tmp_path: Path, shared: int, dense: int
) -> None:
    from luspo_cli.config.model import ModelConfig
    from luspo_cli.policy.loading import load_model
    from luspo_cli.policy.model_shape import read_shape

    experts = {"number": 4, "feed_forward": 24, "shared_feed_forward": shared, "dense_layers": dense}
    shape = ShapeConfig.model_validate({"width": 48, "feed_forward": 56, "experts": experts})
    made = new_model(shape, TERMS.characters, 3)
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    read = load_model(ModelConfig(path=str(tmp_path)))
    assert type(read.model).__name__ == ("Qwen2MoeForCausalLM" if shared else "Qwen3MoeForCausalLM")
    assert read.has_experts
    number = sum(weight.numel() for weight in made.model.parameters())
    assert shape.parameters() == number
    stored = read_shape(tmp_path / "config.json")
    assert (stored.parameters(), stored.experts) == (number, shape.experts)
    for name, weight in read.model.named_parameters():
        assert torch.equal(weight, made.model.get_parameter(name)), name


EXPERTS = ("model.shape.experts.number=4", "model.shape.experts.feed_forward=24")


def test_the_warm_up_of_experts_adds_the_balancing_loss_of_its_response_tokens(
    small_run: Callable[..., TrainRun],
) -> None:
    """Its gradient is the coefficient times that of E Σ f P, computed apart, token by token: 2 of 4 experts, one layer."""
    gradients = []
    for coefficient in (0.0, 0.5):
        config = small_run(*EXPERTS, f"warmup.router_aux_coefficient={coefficient}")
        loaded = new_model(config.model.shape, TERMS.characters, 0)
        rows = demonstrations(loaded, TERMS, "neutral", random.Random(0), 8)
        warmup._backward(loaded, rows, len(rows), config.warmup)
        gradients.append([weight.grad.clone() for weight in loaded.model.parameters()])
    loaded.model.zero_grad()
    logits = []
    for row in rows:
        tokens, start = row.rollout.prompt_tokens + row.rollout.response_tokens, len(row.rollout.prompt_tokens)
        with torch.autocast("cpu", torch.bfloat16):
            found = loaded.model(torch.tensor([tokens]), output_router_logits=True, use_cache=False).router_logits
        logits.append(found[0][start - 1 : -1].float())
    probabilities = torch.cat(logits).softmax(-1)
    chosen = torch.zeros_like(probabilities).scatter(1, probabilities.topk(2).indices, 0.5)
    (0.5 * 4 * (chosen.mean(0) * probabilities.mean(0)).sum()).backward()
    expected = [weight.grad for weight in loaded.model.parameters()]
    router = [name for name, _ in loaded.model.named_parameters()].index("model.layers.0.mlp.gate.weight")
    assert float(expected[router].norm()) > 0
    for without, balanced, own in zip(*gradients, expected, strict=True):
        assert (balanced - without - (0.0 if own is None else own)).norm() <= 0.02 * float(expected[router].norm())


def test_a_balanced_warm_up_uses_the_experts_and_has_a_model_of_its_own(small_run: Callable[..., TrainRun]) -> None:
    found = {}
    for coefficient in (0.0, 1.0):
        sets = (*EXPERTS, "warmup.steps=40", f"warmup.router_aux_coefficient={coefficient}")
        folder = made_model(small_run(*sets))
        found[coefficient] = folder, json.loads((folder / "warmup.json").read_text())["result"]
    assert found[0.0][0] != found[1.0][0]
    assert found[1.0][1]["router/load_max_over_mean"] < found[0.0][1]["router/load_max_over_mean"]
    assert found[1.0][1]["router/load_max_over_mean"] < 1.5


def test_a_warm_up_without_a_balancing_loss_is_cached_as_before_there_was_one(
    small_run: Callable[..., TrainRun],
) -> None:
    """What a dense model is made from has gained no key, so no cached one is made again; asked of it, the loss is refused."""
    known = (
        "steps rows learning_rate ramp_steps answer_weight check_every stop_accuracy min_accuracy max_accuracy"
        " min_mixed_fraction max_length_correlation min_length_spread"
    )
    folder = made_model(small_run())
    assert list(json.loads((folder / "warmup.json").read_text())["made_from"]["warmup"]) == known.split()
    with pytest.raises(UsageError, match=r"warmup\.router_aux_coefficient is for a made model of experts"):
        small_run("warmup.router_aux_coefficient=0.1")
