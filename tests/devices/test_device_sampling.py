"""The in-process sampler on a device: transformers' tokens, the policy's log-probs, and a decode step that a graph can replay."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from doubles.models import random_experts
from luspo_cli.errors import UsageError
from luspo_cli.policy.packing import Row, policy_batch
from luspo_cli.policy.policy import Policy
from luspo_cli.records import Prompt, Rollout
from luspo_cli.rollout.in_process.cache import BLOCK
from luspo_cli.rollout.in_process.decode_graph import GRAPH_BLOCK
from luspo_cli.rollout.in_process.sampler import InProcessSampler
from luspo_cli.rollout.sampler import SamplingOptions

ENDS = [1, 4, 8, 15, 21]
DECODES = pytest.mark.parametrize("graph", [False, True], ids=["layers", "graph"])


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    generator = random.Random(3)
    return [
        Prompt(f"p{i}", tuple(generator.randrange(2, 26) for _ in range(n))) for i, n in enumerate([3, 17, 5, 1, 9])
    ]


def flat(groups: Sequence[Sequence[Rollout]]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group]


@DECODES
@pytest.mark.parametrize("max_rows", [4, 1000])
def test_greedy_tokens_are_those_of_transformers_on_the_cpu(
    device: Any,
    make_model: Callable[..., Any],
    made_tokenizer: Any,
    prompts: list[Prompt],
    max_rows: int,
    graph: bool,
) -> None:
    """With 4 places groups join late and finished rows are cut out: the storage moves and changes its size."""
    reference = make_model(attention="eager")
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt.tokens])
        mask = torch.ones_like(ids)
        settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": ENDS, "pad_token_id": 0}
        out = reference.generate(ids, attention_mask=mask, **settings)
        expected.append(tuple(out[0, ids.shape[1] :].tolist()))
    assert len({len(response) for response in expected}) > 2
    sampler = InProcessSampler(make_model().to(device), made_tokenizer, ENDS, max_rows, graph)
    groups = sampler.sample_groups(prompts, SamplingOptions(2, 20, seed=11, temperature=0))
    assert [[rollout.response_tokens for rollout in group] for group in groups] == [[tokens] * 2 for tokens in expected]


@DECODES
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_log_probs_are_the_policys(
    device: Any, make_model: Callable[..., Any], made_tokenizer: Any, prompts: list[Prompt], graph: bool, dtype: str
) -> None:
    """Over more tokens than a block of the cache has, so that the storage grows meanwhile."""
    model = make_model(dtype=dtype).to(device)
    sampler = InProcessSampler(model, made_tokenizer, [], 1000, graph)
    rollouts = flat(sampler.sample_groups(prompts, SamplingOptions(4, BLOCK + 40, seed=5, temperature=0.8)))
    assert max(rollout.response_length for rollout in rollouts) > BLOCK
    batch = policy_batch([Row(rollout, 1.0) for rollout in rollouts], device)
    with torch.no_grad():
        logprobs, _ = Policy(model, 0.8)(batch)
    drawn = batch.rollout_logprobs
    assert drawn is not None
    differences = (logprobs - drawn)[batch.response_mask].abs()
    assert differences.max() < (1e-4 if dtype == "float32" else 0.3)
    assert differences.mean() < (1e-5 if dtype == "float32" else 0.03)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ends", [[], [1]], ids=["all long", "cut and filled up"])
def test_a_graph_draws_what_the_layers_draw(
    device: Any, make_model: Callable[..., Any], made_tokenizer: Any, prompts: list[Prompt], dtype: str, ends: list[int]
) -> None:
    """Also with weights that moved since the last call; on CUDA one capture serves many steps."""
    model = make_model(dtype=dtype).to(device)
    options = SamplingOptions(4, GRAPH_BLOCK + 40, seed=5)
    layers, graph = (InProcessSampler(model, made_tokenizer, ends, 8, graph) for graph in (False, True))
    for factor in (1.0, 1.3):
        with torch.no_grad():
            model.lm_head.weight.mul_(factor)
        expected, found = (flat(sampler.sample_groups(prompts, options)) for sampler in (layers, graph))
        assert [rollout.response_tokens for rollout in found] == [rollout.response_tokens for rollout in expected]
    assert graph.step.graph is not None
    steps = 2 * max(rollout.response_length for rollout in found)
    assert (0 < graph.step.graph.captures < steps / 2) if device.type == "cuda" else graph.step.graph.captures == 0


def test_the_sampling_copy_is_the_policy_rounded_to_bfloat16(device: Any, make_model: Callable[..., Any]) -> None:
    """Drawn with the copy, and in step with the policy after new weights."""
    from luspo_cli.training.made.build import made_tokenizer

    policy, other = make_model(0).to(device), make_model(1).to(device)
    copy = make_model(1, dtype="bfloat16").to(device)
    sampler = InProcessSampler(copy, made_tokenizer(26), [1], max_rows=8)
    options = SamplingOptions(4, 12, seed=0)
    for source in (policy, other):
        sampler.load_weights(source)
        expected = {name: weight.to(torch.bfloat16) for name, weight in source.named_parameters()}
        assert all(torch.equal(weight, expected[name]) for name, weight in copy.named_parameters())
        (group,) = sampler.sample_groups([Prompt("p", (2, 3, 4))], options)
        for rollout in group:
            ids = torch.tensor([rollout.prompt_tokens + rollout.response_tokens], device=device)
            with torch.no_grad():
                logits = copy(ids).logits.float()[0, 2:-1]
            own = logits.log_softmax(-1).gather(-1, ids[0, 3:, None])[:, 0].cpu()
            assert (own - torch.tensor(rollout.rollout_logprobs)).abs().max() < 0.05  # bfloat16


@pytest.mark.parametrize("kind", ["window", "experts"])
def test_a_graph_is_refused_where_a_step_reads_other_columns(make_model: Callable[..., Any], kind: str) -> None:
    model = make_model() if kind == "window" else random_experts(26, "Qwen3Moe", width=32, moe_intermediate_size=16)
    if kind == "window":
        model.config.layer_types = ["sliding_attention"] * 2
    with pytest.raises(UsageError, match=r"model\.kernels\.decode = graph"):
        InProcessSampler(model, None, [1], 8, graph=True)
