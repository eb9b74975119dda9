"""`luspo eval`'s configuration: layers, options as shorthands, keys that nothing would read, one sentence a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from luspo_cli.config.eval import EvalRun, resolve_eval
from luspo_cli.errors import UsageError


def test_file_then_options_then_set(tmp_path: Path) -> None:
    file = tmp_path / "eval.toml"
    file.write_text('[benchmark]\nnames = ["aime24"]\n[sampling]\nsamples = 2\nseed = 5\ntemperature = 0.5\n')
    options = {"model": "m", "samples": 4, "temperature": 0.0, "top_p": None}
    config = resolve_eval(options, sets=["sampling.samples=8"], config_file=file)
    assert (config.model.path, config.benchmark.names) == ("m", ("aime24",))
    sampling = config.sampling
    assert (sampling.samples, sampling.seed, sampling.temperature, sampling.top_p) == (8, 5, 0.0, 1.0)


def test_names_with_commas_wherever_they_are_given() -> None:
    wanted = ("aime24", "math500")
    assert resolve_eval({"benchmark": "AIME24, math500"}).benchmark.names == wanted
    assert resolve_eval(sets=["benchmark.names=aime24,math500"]).benchmark.names == wanted
    assert resolve_eval(sets=['benchmark.names=["aime24","math500"]']).benchmark.names == wanted


def test_arguments_of_the_chat_template() -> None:
    assert resolve_eval().sampling.chat_template is None  # the run's own
    for assignment in (
        "sampling.chat_template={enable_thinking=false}",
        "sampling.chat_template.enable_thinking=false",
    ):
        assert resolve_eval(sets=[assignment]).sampling.chat_template == {"enable_thinking": False}
    with pytest.raises(UsageError, match="chat_template sets 'tokenize'"):
        resolve_eval(sets=["sampling.chat_template={tokenize=true}"])


@pytest.mark.parametrize(
    ("options", "sets", "said"),
    [
        ({}, ["sampling.sample=4"], r"--set: unknown key 'sampling.sample' \(did you mean 'sampling.samples'\?\)"),
        ({}, ["samples=4"], "--set wants section.key=value, for example --set sampling.samples=4"),
        ({"samples": 0}, [], "--samples: sampling.samples = 0: input should be greater"),
        ({"top_p": 1.5}, [], "--top-p: sampling.top_p = 1.5: input should be less"),
        ({"judge_url": "http://x/v1"}, [], "needs both judge.url and judge.model"),
        ({"judge_workers": 4}, [], "--judge-workers goes with --judge-url and --judge-model"),
        ({}, ["judge.task=verdict"], "--set: judge.task goes with --judge-url and --judge-model"),
        ({"responses": "r.jsonl", "model": "m"}, [], "MODEL_OR_RUN is not read: --responses needs no model"),
        ({"responses": "r.jsonl", "samples": 1}, [], "--samples is for drawing responses; leave it out"),
        ({"responses": "r.jsonl"}, ["sampling.seed=1"], "--set: sampling.seed is for drawing responses"),
        ({"responses": "r.jsonl", "step": 3}, [], "--step is for drawing responses"),
        ({"responses": "r.jsonl", "replace": True}, [], "the file of --out is always replaced"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_where_it_came_from(options, sets, said) -> None:
    with pytest.raises(UsageError, match=said):
        resolve_eval(options, sets=sets)


def test_what_a_result_stores_is_the_configuration_again() -> None:
    config = resolve_eval({"model": "m", "benchmark": "aime24", "out": "o"}, sets=["sampling.seed=3"])
    stored = config.stored()
    assert "output" not in stored
    assert EvalRun.model_validate({**stored, "output": {"path": "o"}}) == config
