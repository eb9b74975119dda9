"""The real vLLM in this process: what a push changes, and that its log-probs are those of the trained model.

One engine a process is all that vLLM promises, so each engine gets a process of its own (`python THIS_FILE NAME FOLDER`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.vllm
FAMILIES = ("Qwen3Moe", "Qwen2Moe")
HALF_BILLION = Path(os.environ.get("LUSPO_CACHE", "~/.cache/luspo")).expanduser() / "models/qwen2.5-coder-0.5b-instruct"


def own_process(name: str, folder: Path) -> None:
    from vllm_models import own_process

    own_process(__file__, name, folder)


@pytest.mark.parametrize("tied", ["tied", "untied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pushed_weights_draw(tied: str, dtype: str, tmp_path: Path) -> None:
    own_process(f"pushes-{tied}-{dtype}", tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_pushed_experts_draw(family: str, tmp_path: Path) -> None:
    own_process(f"experts-{family}", tmp_path)


@pytest.mark.parametrize("name", ["ends", "refusals", "temperature"])
def test_draws(name: str, tmp_path: Path) -> None:
    own_process(name, tmp_path)


def test_half_a_billion_weights(tmp_path: Path) -> None:
    if not (HALF_BILLION / "config.json").is_file():
        pytest.skip(f"no model in {HALF_BILLION}")
    own_process("half-a-billion", tmp_path)


def engine(folder: Path, tokenizer: Any, dtype: str, temperature: float = 1.0, longest: int = 128) -> Any:
    from luspo_cli.rollout.vllm.engine import EngineSettings, VllmSampler

    settings = EngineSettings(str(folder), dtype, longest, max_rows=16, temperature=temperature)  # type: ignore[arg-type]
    return VllmSampler(settings, tokenizer, [1])


def tiny(folder: Path, *, tied: bool = False) -> tuple[Any, Any]:
    import torch
    from vllm_models import VOCABULARY, tiny_model

    from luspo_cli.training.made.build import made_tokenizer

    torch.set_num_threads(1)
    return tiny_model(folder, tied=tied), made_tokenizer(VOCABULARY)


def prompts() -> list[Any]:
    from luspo_cli.records import Prompt

    return [Prompt("a", (5, 9, 17, 33, 2) * 3), Prompt("b", (7, 8))]


def pushes(folder: Path, tied: bool, dtype: str) -> None:
    model, tokenizer = tiny(folder, tied=tied)
    pushed(folder, model, tokenizer, dtype)


def experts(folder: Path, family: str) -> None:
    import torch
    from vllm_models import VOCABULARY, tiny_experts

    from luspo_cli.training.made.build import made_tokenizer

    torch.set_num_threads(1)
    pushed(folder, tiny_experts(folder, family), made_tokenizer(VOCABULARY), "float32")


def pushed(folder: Path, model: Any, tokenizer: Any, dtype: str) -> None:
    """After each push greedy and drawn log-probs are the model's, equal seeds give equal draws, other weights other ones."""
    from vllm_models import differences, randomise

    from luspo_cli.rollout.sampler import SamplingOptions

    sampler = engine(folder, tokenizer, dtype)
    # bfloat16 keeps 8 bits: logits of about 5 are off by up to 0.02 each, and layers add theirs.
    limit, mean = (1e-4, 1e-5) if dtype == "float32" else (0.4, 0.05)
    before = None
    for seed in (0, 1, 2):
        randomise(model, seed)
        sampler.load_weights(model)
        greedy = [group[0] for group in sampler.sample_groups(prompts(), SamplingOptions(1, 30, 0.0))]
        drawn = sampler.sample_groups(prompts(), SamplingOptions(4, 60, 1.0, seed=3))
        for rollouts in (greedy, [rollout for group in drawn for rollout in group]):
            found = differences(model, rollouts, 1.0)
            assert found.max() < limit, found.max()
            assert found.mean() < mean, found.mean()
        heard = {}
        again = sampler.sample_groups(prompts(), SamplingOptions(4, 60, 1.0, seed=3), on_finished=heard.__setitem__)
        assert again == drawn
        assert heard == dict(enumerate(rollout for group in drawn for rollout in group))
        assert sampler.sample_groups(prompts(), SamplingOptions(4, 60, 1.0, seed=4)) != drawn
        assert len({rollout.response_tokens for rollout in drawn[0]}) > 1
        assert drawn != before
        before = drawn
    sampler.close()


def ends(folder: Path) -> None:
    """Our end tokens end a response and are part of it; the model's own do not; the limit cuts."""
    import torch

    from luspo_cli.records import StopReason
    from luspo_cli.rollout.sampler import SamplingOptions
    from luspo_cli.rollout.vllm.engine import EngineSettings, VllmSampler

    model, tokenizer = tiny(folder)
    with torch.no_grad():  # every token equally likely, the model's own end token 1 among them
        model.lm_head.weight.zero_()
    sampler = VllmSampler(EngineSettings(str(folder), "float32", 128, 16, 1.0), tokenizer, [40])
    sampler.load_weights(model)
    options = SamplingOptions(64, 100, 1.0, seed=1)
    rollouts = [rollout for group in sampler.sample_groups(prompts(), options) for rollout in group]
    assert any(1 in rollout.response_tokens[:-1] for rollout in rollouts)
    ended = [rollout for rollout in rollouts if rollout.stop_reason is StopReason.END]
    assert ended
    assert all(rollout.response_tokens.index(40) == len(rollout.response_tokens) - 1 for rollout in ended)
    cut = [rollout for rollout in rollouts if rollout.stop_reason is StopReason.LENGTH]
    assert cut
    assert all(len(rollout.response_tokens) == 100 and 40 not in rollout.response_tokens for rollout in cut)
    # P(no 40 in 100 draws of 512) = 0.82: of 128 rollouts about 105 are cut, five standard deviations are 22.
    assert 83 <= len(cut) <= 127
    uniform = [value for rollout in rollouts for value in rollout.rollout_logprobs]
    assert max(abs(value + 6.2383) for value in uniform) < 1e-3  # ln(1/512)
    sampler.close()


def temperature(folder: Path) -> None:
    """Log-probs are at the sampling temperature; where vLLM has no such number there is none."""
    from vllm_models import differences

    from luspo_cli.rollout.sampler import SamplingOptions

    model, tokenizer = tiny(folder)
    sampler = engine(folder, tokenizer, "float32", temperature=0.7)
    sampler.load_weights(model)
    drawn = [group[0] for group in sampler.sample_groups(prompts(), SamplingOptions(1, 40, 0.7, seed=1))]
    assert differences(model, drawn, 0.7).max() < 1e-4
    assert differences(model, drawn, 1.0).max() > 0.1
    cut = sampler.sample_groups(prompts(), SamplingOptions(1, 10, 0.7, top_k=3))
    assert all(rollout.rollout_logprobs == () for group in cut for rollout in group)
    sampler.close()


def refusals(folder: Path) -> None:
    """One sentence each, and the host's torch keeps its threads and its random state."""
    import torch

    from luspo_cli.errors import RunError, UsageError
    from luspo_cli.rollout.sampler import SamplingOptions

    model, tokenizer = tiny(folder)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    set_threads = torch.set_num_threads
    sampler = engine(folder, tokenizer, "float32")
    assert torch.equal(torch.rand(3), expected)
    assert torch.set_num_threads is set_threads
    sampler.load_weights(model)
    for options, word in ((SamplingOptions(1, 120), "started for 128"), (SamplingOptions(1, 5, 0.001), "0.01")):
        with pytest.raises(UsageError, match=word):
            sampler.sample_groups(prompts(), options)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    sampler.load_weights(model)
    with pytest.raises(RunError, match="not finite"):
        sampler.sample_groups(prompts(), SamplingOptions(2, 5))
    sampler.close()
    with pytest.raises(UsageError, match="vLLM cannot run") as caught:
        engine(folder, tokenizer, "float32", longest=100_000)
    assert "\n" not in str(caught.value)


def half_a_billion(folder: Path) -> None:
    """Qwen2.5 0.5B in bfloat16, weights moved as an update moves them: greedy log-probs are the moved model's."""
    import time

    import torch
    from vllm_models import differences

    from luspo_cli.config.model import ModelConfig
    from luspo_cli.policy.loading import load_model
    from luspo_cli.records import Prompt
    from luspo_cli.rollout.sampler import SamplingOptions
    from luspo_cli.rollout.vllm.engine import EngineSettings, VllmSampler

    loaded = load_model(ModelConfig(path=str(HALF_BILLION), compute_dtype="bfloat16"))
    model = loaded.model.to(torch.bfloat16).requires_grad_(False)
    settings = EngineSettings(str(HALF_BILLION), "bfloat16", 256, max_rows=4, temperature=1.0)
    sampler = VllmSampler(settings, loaded.tokenizer, loaded.end_tokens)
    questions = ["What is 17 times 23? Think step by step.", "Write a function that reverses a list."]
    asked = [Prompt(text, tuple(loaded.tokenizer.encode(text))) for text in questions]
    for move in (0.0, 0.01):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(move * weight.abs().mean() * torch.randn_like(weight))
        started = time.perf_counter()
        sampler.load_weights(model)
        pushed = time.perf_counter() - started
        greedy = [group[0] for group in sampler.sample_groups(asked, SamplingOptions(1, 40, 0.0))]
        found = differences(model, greedy, 1.0)
        print(f"moved {move}: push {pushed:.2f} s, mean {found.mean():.4f}, max {found.max():.4f}")
        assert found.mean() < 0.03, found.mean()
        assert found.max() < 0.4, found.max()
    sampler.close()


CHECKS: dict[str, Callable[[Path], None]] = {
    **{
        f"pushes-{tied}-{dtype}": (lambda folder, tied=tied, dtype=dtype: pushes(folder, tied == "tied", dtype))
        for tied in ("tied", "untied")
        for dtype in ("float32", "bfloat16")
    },
    **{f"experts-{family}": (lambda folder, family=family: experts(folder, family)) for family in FAMILIES},
    "ends": ends,
    "temperature": temperature,
    "refusals": refusals,
    "half-a-billion": half_a_billion,
}

if __name__ == "__main__":
    CHECKS[sys.argv[1]](Path(sys.argv[2]))
