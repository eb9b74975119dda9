"""The real vLLM with images, in this process and as a server: its log-probs are the trained model's, whatever part was pushed.

One engine a process is all that vLLM promises, so each engine gets a process of its own (`python THIS_FILE NAME FOLDER`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.vllm
CONTEXT = 256
FAMILIES = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pushed_weights_see(family: str, dtype: str, tmp_path: Path) -> None:
    from vllm_models import own_process

    own_process(__file__, f"{family}-{dtype}", tmp_path)


def test_a_tied_head_and_never_drawn_tokens(tmp_path: Path) -> None:
    from vllm_models import own_process

    own_process(__file__, "never-drawn", tmp_path)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Any]]:
    """The address of a vLLM server with a tiny vision model, the model's folder and the model."""
    from vllm_models import served

    folder = tmp_path_factory.mktemp("served")
    model = saved(folder)
    with served(folder, CONTEXT, "--no-mm-device-do-normalize") as url:
        yield url, folder, model


def test_pushed_weights_see_over_a_server(live: tuple[str, Path, Any]) -> None:
    url, folder, model = live
    check(over(url), model, folder, "float32")


def test_further_features_of_deeper_layers_reach_a_server(tmp_path: Path) -> None:
    """Those of Qwen3-VL, which go beside the others in one tensor."""
    from vllm_models import served

    model = saved(tmp_path, "qwen3_vl")
    with served(tmp_path, CONTEXT, "--no-mm-device-do-normalize") as url:
        check(over(url), model, tmp_path, "float32")


def test_a_server_that_threw_an_image_away_is_sent_it_again(live: tuple[str, Path, Any]) -> None:
    """What it has under a name is lost, as in a full cache: asking by names alone fails, and the rollouts come all the same."""
    from luspo_cli.errors import RunError
    from luspo_cli.rollout.sampler import SamplingOptions
    from luspo_cli.rollout.vllm.images import prompt_images, server_features
    from luspo_cli.rollout.vllm.requests import sampling_parameters

    url, folder, model = live
    sampler = over(url)
    sampler.load_weights(model)
    prompt = prompts(folder)[0]
    names = server_features(prompt_images(prompt, sampler.version), None)
    options = SamplingOptions(2, 8, 0.0)
    with pytest.raises(RunError):
        sampler._servers[0].draw(
            prompt.tokens, sampling_parameters(options, 0, [1], never_drawn()), sampler.version, names
        )
    expected = sampler.sample_groups([prompt], options)
    # Under a version of its own nothing was sent: as if all were thrown away behind the first request.
    server, asked = sampler._servers[0], []

    def forgetful(tokens: Any, parameters: Any, version: str, features: Any) -> Any:
        asked.append(features["kwargs_data"]["image"][0] is not None)
        if not asked[-1]:
            features = {**features, "mm_hashes": {"image": ["forgotten"]}}
        return type(server).draw(server, tokens, parameters, version, features)

    server.draw = forgetful  # type: ignore[method-assign]
    assert sampler.sample_groups([prompt], options) == expected
    assert asked[0] is True
    assert sorted(asked[1:]) == [False, False, True, True]


def test_a_server_that_would_normalise_pixels_again_is_refused(tmp_path: Path) -> None:
    from vllm_models import served

    from luspo_cli.errors import UsageError

    saved(tmp_path)
    with served(tmp_path, CONTEXT) as url, pytest.raises(UsageError, match="start it with --no-mm-device-do-normalize"):
        over(url)


def never_drawn() -> tuple[int, ...]:
    from doubles.vision import IMAGE_TOKENS

    return IMAGE_TOKENS


def saved(folder: Path, family: str = "qwen2_5_vl", **options: Any) -> Any:
    """A model whose heads are of 32 numbers, as vLLM's kernels want them, in `folder` with its processor."""
    from doubles.vision import vision_model, vision_processor

    model = vision_model(scale=2, family=family, **options)
    randomise(model, 0)
    model.save_pretrained(folder)
    vision_processor(family=family).save_pretrained(folder)
    return model


def randomise(model: Any, seed: int, part: str = "") -> None:
    """New weights of a part in place, of a spread that makes some next tokens likelier than others."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if part in name:
                spread = 0.2 if "embed_tokens" in name or "lm_head" in name else 0.1
                weight.normal_(1.0 if "norm" in name or "ln_q" in name else 0.0, spread)


def prompts(folder: Path) -> list[Any]:
    """One image, the same question to another one, two of different sizes, none."""
    from doubles.vision import noise_image, vision_processor
    from luspo_cli.data.images import ImageFile
    from luspo_cli.policy.inputs import prompt_inputs
    from luspo_cli.records import Message, Problem

    sizes = [(60, 90), (60, 90), (100, 56), (200, 120)]
    files = [ImageFile(noise_image(folder / f"{i}.png", *size, seed=i)) for i, size in enumerate(sizes)]
    asked = [("<image>What?", files[:1]), ("<image>What?", files[1:2]), ("x<image>y<image>?", files[2:]), ("None?", [])]
    processor = vision_processor()
    return [
        prompt_inputs(Problem(str(i), (Message("user", text),), "", "", tuple(images)), processor.tokenizer, processor)
        for i, (text, images) in enumerate(asked)
    ]


def over(url: str) -> Any:
    from doubles.vision import character_tokenizer
    from luspo_cli.rollout.sampler import SamplingOptions
    from luspo_cli.rollout.vllm.server import VllmServerSampler

    return VllmServerSampler(
        [url], character_tokenizer(), [1], "float32", 8, CONTEXT, 120.0, SamplingOptions(2, 8), never_drawn()
    )


def engine(folder: Path, dtype: str) -> Any:
    from doubles.vision import MAX_PIXELS, character_tokenizer
    from luspo_cli.rollout.vllm.engine import EngineSettings, VllmSampler

    settings = EngineSettings(
        str(folder),
        dtype,  # type: ignore[arg-type]
        CONTEXT,
        max_rows=8,
        temperature=1.0,
        never_drawn=never_drawn(),
        image_pixels=(56 * 56, MAX_PIXELS),
    )
    return VllmSampler(settings, character_tokenizer(), [1])


def differences(model: Any, asked: Sequence[Any], groups: Sequence[Sequence[Any]]) -> torch.Tensor:
    """|log-prob of the policy − of the sampler| of every response token [N], rows with and without images in one batch."""
    from luspo_cli.policy.packing import Row, policy_batch
    from luspo_cli.policy.policy import Policy

    rows = [
        Row(rollout, 1.0, prompt.image_inputs) for prompt, group in zip(asked, groups, strict=True) for rollout in group
    ]
    batch = policy_batch(rows)
    assert batch.rollout_logprobs is not None
    with torch.no_grad():
        own, _ = Policy(model, 1.0)(batch)
    return (own - batch.rollout_logprobs)[batch.response_mask].abs()


def check(sampler: Any, model: Any, folder: Path, dtype: str) -> None:
    """After a push of all weights, and of the tower's alone, log-probs are the policy's; the picture decides the answer."""
    from luspo_cli.policy.images import with_features
    from luspo_cli.rollout.sampler import SamplingOptions

    asked = prompts(folder)
    limit, mean = (1e-4, 1e-5) if dtype == "float32" else (0.4, 0.05)
    before: Any = None
    for seed, part in ((0, ""), (1, ""), (2, "visual")):
        randomise(model, seed, part)
        sampler.load_weights(model)
        greedy = sampler.sample_groups(asked, SamplingOptions(1, 20, 0.0))
        drawn = sampler.sample_groups(asked, SamplingOptions(3, 30, 1.0, seed=3))
        for groups in (greedy, drawn):
            found = differences(model, asked, groups)
            print(f"{part or 'all'}: {len(found)} tokens, mean {found.mean():.2e}, max {found.max():.2e}")
            assert found.max() < limit
            assert found.mean() < mean
        assert sampler.sample_groups(asked, SamplingOptions(3, 30, 1.0, seed=3)) == drawn
        tokens = [group[0].response_tokens for group in greedy]
        assert tokens[0] != tokens[1]  # equal but for the picture
        exchanged = sampler.sample_groups([asked[1], asked[0]], SamplingOptions(1, 20, 0.0))
        assert [group[0].response_tokens for group in exchanged] == [tokens[1], tokens[0]]
        if dtype == "float32":  # a frozen tower's features, computed by the policy, in the place of pixels
            seen = [with_features(prompt, model) for prompt in asked]
            assert [
                group[0].response_tokens for group in sampler.sample_groups(seen, SamplingOptions(1, 20, 0.0))
            ] == tokens
            assert differences(model, seen, sampler.sample_groups(seen, SamplingOptions(2, 30, 1.0))).max() < limit
        if part == "visual":
            assert tokens[:3] != before[:3]
            assert tokens[3] == before[3]  # without a picture nothing has changed
        before = tokens


def sees(folder: Path, family: str, dtype: str) -> None:
    model = saved(folder, family=family)
    sampler = engine(folder, dtype)
    check(sampler, model, folder, dtype)
    sampler.close()


def never(folder: Path) -> None:
    """A head that likes an image token best: greedy takes the best of the rest; log-probs are over all tokens, as in process."""
    from doubles.vision import character_tokenizer
    from luspo_cli.rollout.in_process.sampler import InProcessSampler
    from luspo_cli.rollout.sampler import SamplingOptions

    model = saved(folder, tied=True)
    sampler = engine(folder, "float32")
    for seed in (0, 1):
        randomise(model, seed)
        asked, options = prompts(folder), SamplingOptions(2, 12, 0.0)
        own = InProcessSampler(model, character_tokenizer(), [1], 8)
        with torch.no_grad():  # the token that is drawn first also gets the head row of an image token, a little longer
            first = own.sample_groups(asked, options)[0][0].response_tokens[0]
            model.lm_head.weight[6] = 1.1 * model.lm_head.weight[first]
        sampler.load_weights(model)
        ours, theirs = own.sample_groups(asked, options), sampler.sample_groups(asked, options)
        for one, other in zip(chain(*ours), chain(*theirs), strict=True):
            assert one.response_tokens == other.response_tokens
            assert not set(one.response_tokens) & set(never_drawn())
            assert max(abs(a - b) for a, b in zip(one.rollout_logprobs, other.rollout_logprobs, strict=True)) < 1e-4
        assert (
            min(rollout.rollout_logprobs[0] for rollout in theirs[0]) < -0.7
        )  # the image token has more than half of it
        drawn = sampler.sample_groups(asked, SamplingOptions(8, 40, 1.0, seed=5))
        assert not {token for group in drawn for rollout in group for token in rollout.response_tokens} & {4, 5, 6, 7}
    sampler.close()


CHECKS: dict[str, Callable[[Path], None]] = {
    **{
        f"{family}-{dtype}": (lambda folder, family=family, dtype=dtype: sees(folder, family, dtype))
        for family in FAMILIES
        for dtype in ("float32", "bfloat16")
    },
    "never-drawn": never,
}

if __name__ == "__main__":
    CHECKS[sys.argv[1]](Path(sys.argv[2]))
