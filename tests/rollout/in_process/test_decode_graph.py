"""What a captured decode step reads and when it is captured anew, with a stand-in for CUDA's graphs.

The stand-in has their contract: a replay computes with the tensors of the capture, whatever the caller holds by then, and puts
its result where that of the capture was. On a CUDA device tests/devices does the same with graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from luspo_cli.records import Prompt
from luspo_cli.rollout.in_process.decode_graph import GRAPH_BLOCK, Captured
from luspo_cli.rollout.in_process.sampler import InProcessSampler
from luspo_cli.rollout.sampler import SamplingOptions

PROMPTS = [Prompt(f"p{i}", tuple(range(2, 2 + n))) for i, n in enumerate([3, 17, 5, 1])]


def stand_in(compute: Callable[[], Tensor]) -> Captured:
    compute()
    result = compute().clone()

    def replay() -> None:
        result.copy_(compute())

    return replay, result


def drawn(model: Any, tokenizer: Any, ends: list[int], max_rows: int, capture: Any = None, **changes: Any) -> Any:
    sampler = InProcessSampler(model, tokenizer, ends, max_rows, graph=capture is not None)
    if sampler.step.graph:
        sampler.step.graph.capture = capture
    options = SamplingOptions(**{"group_size": 2, "max_response_tokens": 30, "seed": 3, **changes})
    found = [rollout for group in sampler.sample_groups(PROMPTS, options) for rollout in group]
    return [rollout.response_tokens for rollout in found], sampler.step.graph


@pytest.mark.parametrize("ends", [[], [1, 9]], ids=["all long", "cut and filled up"])
@pytest.mark.parametrize("max_rows", [2, 4, 100])
def test_replays_draw_what_the_layers_draw(
    make_model: Callable[..., Any], made_tokenizer: Any, ends: list[int], max_rows: int
) -> None:
    model = make_model(dtype="float64")
    expected, _ = drawn(model, made_tokenizer, ends, max_rows)
    found, graph = drawn(model, made_tokenizer, ends, max_rows, stand_in)
    assert found == expected
    assert graph.captures >= 1


def test_a_capture_serves_until_the_storage_grows(make_model: Callable[..., Any], made_tokenizer: Any) -> None:
    """Rows that never end: the storage has room for a block beyond the longest prompt, and grows once."""
    model = make_model(dtype="float64")
    _, graph = drawn(model, made_tokenizer, [], 100, stand_in, max_response_tokens=GRAPH_BLOCK)
    assert graph.captures == 1
    found, graph = drawn(model, made_tokenizer, [], 100, stand_in, max_response_tokens=GRAPH_BLOCK + 20)
    assert graph.captures == 2
    assert found == drawn(model, made_tokenizer, [], 100, max_response_tokens=GRAPH_BLOCK + 20)[0]


@pytest.mark.parametrize("name", ["_tokens", "_positions", "_open"])
def test_a_replay_with_an_input_of_the_capture_would_be_noticed(
    make_model: Callable[..., Any], made_tokenizer: Any, name: str
) -> None:
    """Each of the three that change from step to step."""
    model = make_model(dtype="float64")
    sampler = InProcessSampler(model, made_tokenizer, [], 100, graph=True)
    graph = sampler.step.graph
    assert graph is not None

    def stale(compute: Callable[[], Tensor]) -> Captured:
        kept, result = getattr(graph, name).clone(), compute().clone()

        def replay() -> None:
            getattr(graph, name).copy_(kept)
            result.copy_(compute())

        return replay, result

    graph.capture = stale
    groups = sampler.sample_groups(PROMPTS, SamplingOptions(2, 30, seed=3))
    found = [rollout.response_tokens for group in groups for rollout in group]
    assert found != drawn(model, made_tokenizer, [], 100)[0]
