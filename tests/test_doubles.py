"""The doubles do what the tests that use them rely on."""

from __future__ import annotations

from pathlib import Path

from doubles.models import END, stamping_model, writing_model
from luspo_cli.config.model import ModelConfig
from luspo_cli.policy.loading import load_model
from luspo_cli.records import Message, Problem, Prompt, StopReason
from luspo_cli.rollout.in_process.sampler import InProcessSampler
from luspo_cli.rollout.sampler import SamplingOptions


def written(folder: Path, *questions: str, samples: int = 40) -> list[list[str]]:
    """The responses of our own sampler to each question, through the model folder's own chat template."""
    from luspo_cli.policy.inputs import prompt_tokens

    loaded = load_model(ModelConfig(path=str(folder)))
    problems = [Problem(f"p{i}", (Message("user", text),), "1", "test") for i, text in enumerate(questions)]
    prompts = [Prompt(problem.id, prompt_tokens(problem, loaded.tokenizer)) for problem in problems]
    sampler = InProcessSampler(loaded.model, loaded.tokenizer, [loaded.tokenizer.eos_token_id], max_rows=64)
    groups = sampler.sample_groups(prompts, SamplingOptions(samples, 4, seed=1))
    assert all(rollout.stop_reason is StopReason.END for group in groups for rollout in group)
    return [[rollout.response.removesuffix(END) for rollout in group] for group in groups]


def test_a_writing_model_writes_exactly_the_given_responses(tmp_path: Path) -> None:
    r"""Spaces, line feeds, TeX and characters beyond ASCII come back as they were; several responses share the draws."""
    one, many = "Let x = 2.\n\nSo  \\boxed{\\frac{1}{2}} €.\n#### 7", ["A", "B ", " \\boxed{½}"]
    folder = writing_model(tmp_path / "model", {"<1>": one, "<2>": many})
    first, second, unknown = written(folder, "What is it? <1>", "<2>", "something else")
    assert set(first) == {one}
    assert set(second) == set(many)
    assert min(second.count(text) for text in many) >= 5  # of 40 draws from three: 13 expected
    assert set(unknown) == {""}


def test_what_the_template_puts_behind_the_question_belongs_to_the_key(tmp_path: Path) -> None:
    template = "{{ messages[-1]['content'] + ' <think>\n' }}"  # a line feed at a template's own end is dropped
    folder = writing_model(tmp_path / "model", {"<1> <think>\n": "5</think>6", "<2> <think>\n": "8"}, template)
    assert written(folder, "one <1>", "two <2>", samples=2) == [["5</think>6"] * 2, ["8"] * 2]


def test_a_stamping_model_gives_the_same_response_to_anything(tmp_path: Path) -> None:
    folder = stamping_model(tmp_path / "model", "The answer is 4.")
    assert written(folder, "What?", "€", samples=2) == [["The answer is 4."] * 2] * 2
