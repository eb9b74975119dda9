"""The sampler on prompts with images: against transformers' generation, the policy, and real problems end to end."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from doubles.vision import FAMILIES, IMAGE_TOKENS, noise_image, vision_model, vision_processor
from luspo_cli.data.images import ImageFile
from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem
from luspo_cli.evaluation.sampling import BenchmarkPrompts, SamplingModel
from luspo_cli.policy.inputs import prompt_inputs
from luspo_cli.policy.packing import Row, policy_batch
from luspo_cli.policy.policy import Policy
from luspo_cli.policy.supported import image_token_ids
from luspo_cli.records import Message, Problem, Prompt, Rollout
from luspo_cli.rollout.in_process.packed import bfloat16_copy
from luspo_cli.rollout.in_process.sampler import InProcessSampler
from luspo_cli.rollout.sampler import PromptsOnRequest, Sampler, SamplingOptions

# Text and image sizes (width, height): tall, wide, small, two at once, none, one at the very start.
PROMPTS = [
    ("Count: <image>", [(70, 170)]),
    ("2+2=", []),
    ("<image>", [(400, 25)]),
    ("Is <image> like <image>?", [(100, 70), (60, 60)]),
    ("Say something longer than all the others, without any image at all.", []),
    ("<image>.", [(30, 30)]),
]
ENDS = (1, 20, 40, 60, 80, 100)


@pytest.fixture(scope="module")
def processor() -> Any:
    return vision_processor()


@pytest.fixture(scope="module")
def prompts(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    folder = tmp_path_factory.mktemp("images")
    found = []
    for number, (text, sizes) in enumerate(PROMPTS):
        paths = [folder / f"{number}-{n}.png" for n in range(len(sizes))]
        for path, (width, height) in zip(paths, sizes, strict=True):
            noise_image(path, width, height, number)
        problem = Problem(f"p{number}", (Message("user", text),), "4", "t", tuple(map(ImageFile, paths)))
        found.append(prompt_inputs(problem, processor.tokenizer, processor))
    return found


def sampled(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], max_rows: int = 1000, **options: Any
) -> list[list[Rollout]]:
    settings = {"group_size": 3, "max_response_tokens": 20, "seed": 11, **options}
    return InProcessSampler(model, tokenizer, ENDS, max_rows).sample_groups(prompts, SamplingOptions(**settings))


def tokens(groups: list[list[Rollout]]) -> list[list[tuple[int, ...]]]:
    return [[rollout.response_tokens for rollout in group] for group in groups]


def generated(model: Any, prompt: Prompt, never: Sequence[int] | None) -> tuple[int, ...]:
    """Greedy tokens of transformers' own generation, which finds rotary positions and their continuation by itself."""
    ids = torch.tensor([prompt.tokens])
    images = dict(prompt.image_inputs or {})
    if images:
        images["mm_token_type_ids"] = images["mm_token_type_ids"][None]
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=list(ENDS),
        pad_token_id=0,
        suppress_tokens=None if never is None else list(never),
        **images,
    )
    return tuple(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(processor: Any, prompts: list[Prompt], family: str) -> None:
    """With 2 or 5 places, groups join late, beside rows with and without images and of other lengths."""
    seed = 8 if family == "qwen3_vl" else 0  # the first with responses of more than two lengths
    reference = vision_model(seed, ours=False, family=family)
    expected = [generated(reference, prompt, IMAGE_TOKENS) for prompt in prompts]
    assert len({len(response) for response in expected}) > 2  # otherwise nothing was ever cut out
    for max_rows in (2, 5, 1000):
        groups = sampled(
            vision_model(seed, family=family), processor.tokenizer, prompts, max_rows, group_size=2, temperature=0
        )
        assert tokens(groups) == [[response, response] for response in expected], max_rows


def test_image_tokens_are_never_drawn_where_the_model_wants_them(processor: Any, prompts: list[Prompt]) -> None:
    model = vision_model()
    with torch.no_grad():
        # Their logits become by far the largest whenever the first hidden number is positive.
        model.lm_head.weight[list(IMAGE_TOKENS)] = 0.0
        model.lm_head.weight[list(IMAGE_TOKENS), 0] = 40.0
    images = set(IMAGE_TOKENS)
    unbanned = vision_model(ours=False)
    unbanned.load_state_dict(model.state_dict())
    assert any(images & set(generated(unbanned, prompt, None)) for prompt in prompts if not prompt.image_inputs)
    for options in ({"temperature": 0}, {}, {"top_k": 3}, {"top_p": 0.5}):
        groups = sampled(model, processor.tokenizer, prompts, group_size=4, **options)
        drawn = {token for group in groups for rollout in group for token in rollout.response_tokens}
        assert not drawn & images, options


def test_which_tokens_are_never_drawn(make_model: Any) -> None:
    assert image_token_ids(vision_model().config) == IMAGE_TOKENS
    assert image_token_ids(make_model().config) == ()


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"top_p": 0.8}, {"temperature": 0}])
@pytest.mark.parametrize("max_rows", [4, 1000])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_that_the_policy_computes(
    processor: Any, prompts: list[Prompt], options: dict[str, Any], max_rows: int, family: str
) -> None:
    """Over the whole vocabulary: what is never drawn keeps its share, in the sampler as in the policy."""
    model = vision_model(3, family=family)
    groups = sampled(model, processor.tokenizer, prompts, max_rows, **options)
    rows = [
        Row(rollout, 1.0, prompt.image_inputs)
        for prompt, group in zip(prompts, groups, strict=True)
        for rollout in group
    ]
    with torch.no_grad():
        logprobs, _ = Policy(model, options.get("temperature") or 1.0)(policy_batch(rows))
    for found, row in zip(logprobs, rows, strict=True):
        length = row.rollout.response_length
        assert found[:length].tolist() == pytest.approx(row.rollout.rollout_logprobs, abs=1e-4)


def test_the_number_of_places_does_not_change_the_draws(
    processor: Any, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vision_model(dtype="float64")
    many = sampled(model, processor.tokenizer, prompts)
    assert len({rollout.response_length for group in many for rollout in group}) > 3
    for max_rows in (3, 7):
        assert tokens(sampled(model, processor.tokenizer, prompts, max_rows)) == tokens(many)
    monkeypatch.setattr(
        "luspo_cli.rollout.in_process.sampler.PREFILL_TOKENS", 50
    )  # prompts of 20 to 97 tokens: in parts
    assert tokens(sampled(model, processor.tokenizer, prompts)) == tokens(many)


def test_a_group_computes_its_images_once(
    processor: Any, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vision_model()
    seen: list[int] = []
    compute = model.model.visual.forward

    def counted(pixels: torch.Tensor, **rest: Any) -> Any:
        seen.append(len(pixels))
        return compute(pixels, **rest)

    monkeypatch.setattr(model.model.visual, "forward", counted)
    sampled(model, processor.tokenizer, prompts, group_size=8)
    assert sum(seen) == sum(len(prompt.image_inputs["pixel_values"]) for prompt in prompts if prompt.image_inputs)


def test_a_prompt_is_asked_for_once_and_its_pixels_are_let_go(processor: Any, tmp_path: Path) -> None:
    """Forty problems through two places: never are the pixels of more than two prompts there."""
    files = [noise_image(tmp_path / f"{n}.png", 40 + n, 60, n) for n in range(40)]
    problems = [Problem(str(n), (Message("user", "<image>"),), "1", "t", (ImageFile(f),)) for n, f in enumerate(files)]
    made: list[str] = []
    there: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def to_prompt(problem: Problem) -> Prompt:
        nonlocal most
        prompt = prompt_inputs(problem, processor.tokenizer, processor)
        assert prompt.image_inputs is not None
        made.append(problem.id)
        there.append(weakref.ref(prompt.image_inputs["pixel_values"]))
        most = max(most, sum(one() is not None for one in there))
        return prompt

    groups = sampled(vision_model(), processor.tokenizer, PromptsOnRequest(problems, to_prompt), 6)
    assert made == [problem.id for problem in problems]
    assert most <= 2
    held = [prompt_inputs(problem, processor.tokenizer, processor) for problem in problems]
    assert tokens(groups) == tokens(sampled(vision_model(), processor.tokenizer, held, 6))
    assert [group[0].prompt_tokens for group in groups] == [prompt.tokens for prompt in held]


def test_the_bfloat16_copy_samples_images_too(processor: Any, prompts: list[Prompt]) -> None:
    groups = sampled(bfloat16_copy(vision_model()), processor.tokenizer, prompts, temperature=0)
    assert [len(group) for group in groups] == [3] * len(prompts)
    rows = [Row(group[0], 1.0, prompt.image_inputs) for prompt, group in zip(prompts, groups, strict=True)]
    with torch.no_grad():
        logprobs, _ = Policy(vision_model(), 1.0)(policy_batch(rows))
    differences = [
        abs(a - b)
        for found, row in zip(logprobs.tolist(), rows, strict=True)
        for a, b in zip(found, row.rollout.rollout_logprobs, strict=False)
    ]
    assert sum(differences) / len(differences) < 0.5  # the same distribution, give or take bfloat16


DATA = Path(os.environ.get("LUSPO_DATA") or Path(__file__).resolve().parents[3] / "../shared/data")
TOKENIZER = Path("~/.cache/luspo/models/qwen2.5-coder-0.5b-instruct").expanduser()


@pytest.fixture(scope="module")
def qwen_processor() -> Any:
    """Qwen2.5's own vocabulary under the processor, images of up to 64 tokens."""
    if not (TOKENIZER / "tokenizer.json").is_file():
        pytest.skip(f"needs the Qwen2.5 tokenizer in {TOKENIZER}")
    from transformers import AutoTokenizer

    return vision_processor(AutoTokenizer.from_pretrained(TOKENIZER), max_pixels=28 * 28 * 64)


@pytest.fixture(scope="module")
def qwen_sized_model(qwen_processor: Any) -> Any:
    names = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    start, stop, image, video = (qwen_processor.tokenizer.convert_tokens_to_ids(name) for name in names)
    assert (start, stop, image, video) == (151652, 151653, 151655, 151656)
    return vision_model(vocabulary=151936, image_tokens=(start, stop, image, video), end=151645)


def benchmark_case(name: str) -> tuple[Benchmark, Path]:
    from luspo_cli.evaluation.benchmarks.logicvista import LOGICVISTA
    from luspo_cli.evaluation.benchmarks.wemath import WEMATH

    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"needs {folder}; set LUSPO_DATA to the folder with the benchmark data")
    return (WEMATH if name == "wemath" else LOGICVISTA), folder


@pytest.mark.parametrize("name", ["wemath", "logicvista"])
def test_a_real_problem_from_its_picture_to_its_score(name: str, qwen_processor: Any, qwen_sized_model: Any) -> None:
    from luspo_cli.evaluation.responses import Sample
    from luspo_cli.evaluation.scorer import score_samples

    benchmark, folder = benchmark_case(name)
    problems: list[BenchmarkProblem] = benchmark.problems(folder)
    tokenizer = qwen_processor.tokenizer
    asked = [problems[0], problems[7], problems[-1]]
    sampler = InProcessSampler(qwen_sized_model, tokenizer, (151645, 151643), 4)
    model = SamplingModel(sampler, tokenizer, None, qwen_processor)
    prompts = list(BenchmarkPrompts(model, benchmark, asked))
    for one, prompt in zip(asked, prompts, strict=True):
        assert prompt.image_inputs is not None
        assert 4 <= prompt.tokens.count(151655) <= 64
        text = tokenizer.decode(prompt.tokens)
        assert one.question in text
        assert "<image>" not in text
    groups = sampler.sample_groups(prompts, SamplingOptions(group_size=2, max_response_tokens=6, seed=1))
    rows = [Row(r, 1.0, prompt.image_inputs) for prompt, group in zip(prompts, groups, strict=True) for r in group]
    with torch.no_grad():
        logprobs, _ = Policy(qwen_sized_model, 1.0)(policy_batch(rows))
    for found, row in zip(logprobs, rows, strict=True):
        length = row.rollout.response_length
        assert 1 <= length <= 6
        assert found[:length].tolist() == pytest.approx(row.rollout.rollout_logprobs, abs=1e-4)
    # The first sample as drawn, a second one that states the gold answer: the score tells them apart.
    samples = [
        Sample(one.id, response)
        for one, group in zip(asked, groups, strict=True)
        for response in (group[0].response, rf"\boxed{{{one.gold}}}")
    ]
    result = score_samples(benchmark, asked, samples)
    verdicts = [[verdict.correct for verdict in result.graded[one.id]] for one in asked]
    assert verdicts == [[False, True]] * 3


def test_every_picture_of_a_benchmark_is_read_when_its_turn_comes(
    qwen_processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All 448 lengths from the headers, with no pixel decoded; then one chunk, whose lengths are as foretold."""
    benchmark, folder = benchmark_case("logicvista")
    decoded: list[str] = []
    load = ImageFile.load

    def counted(image: ImageFile) -> Any:
        decoded.append(str(image.path.relative_to(folder.resolve())))
        return load(image)

    monkeypatch.setattr(ImageFile, "load", counted)
    problems = benchmark.problems(folder)
    model = SamplingModel(cast(Sampler, None), qwen_processor.tokenizer, None, qwen_processor)
    prompts = BenchmarkPrompts(model, benchmark, problems)
    lengths = prompts.lengths()
    assert (len(prompts), len(lengths), decoded) == (448, 448, [])
    chunk = prompts[3:400:60]
    assert decoded == [one.images[0].name for one in problems[3:400:60]]
    assert [len(prompt.tokens) for prompt in chunk] == lengths[3:400:60]
    assert prompts[3].tokens == chunk[0].tokens
