"""A step's sampling and grading with `reward.while_sampling` off and on: functions that wait, compute, or hang now and then.

    python -m bench while_sampling [--size 60m] [--rows 64] [--tokens 128] [--seconds 0.2] [--repeats 3] [--json FILE]

The in-process sampler draws groups of 8 from a model of random weights, on a GPU where there is one; one token in 128
ends a response, so that lengths spread up to the limit. `waits` sleeps for `--seconds` a response, as a
judge over HTTP keeps a worker waiting; `computes` takes as much of a core; `hangs` computes a tenth of that, and does not come
back for about one response in 32, with a limit of 2 s. Draws are the same off and on, and so are the rewards, which is checked.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from results import Results, Values, print_table, with_ratio
from shared.models import SIZES, random_model

FUNCTIONS = """
import hashlib, time

def compute(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

def waits(solution_str, extra_info, **kwargs):
    time.sleep(extra_info["seconds"])
    return len(solution_str)

def computes(solution_str, extra_info, **kwargs):
    compute(extra_info["seconds"])
    return len(solution_str)

def hangs(solution_str, extra_info, **kwargs):
    compute(extra_info["seconds"] / 10)
    if hashlib.sha256(f"{extra_info['id']} {extra_info['response_length']}".encode()).digest()[0] < 8:
        time.sleep(3600)
    return len(solution_str)
"""
KINDS = ("waits", "computes", "hangs")
GROUP, END_SHARE = 8, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="60m")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kept = {key: getattr(options, key) for key in ("size", "rows", "tokens", "seconds")}
    results = Results("while sampling", options.json, **kept)
    with tempfile.TemporaryDirectory() as folder:
        step = _step(Path(folder), options)
        step("waits", False)  # what is done once: the recorded decode step, the first worker
        cases: dict[str, Callable[[], Values]] = {
            f"{kind}, {'on' if on else 'off'}": partial(step, kind, on) for kind in KINDS for on in (False, True)
        }
        medians = results.interleaved(cases, options.repeats)
    columns = ("sampling s", "then grading s", "both s")
    for kind in KINDS:
        own = {name: values for name, values in medians.items() if name.startswith(kind)}
        print_table(kind, with_ratio(own, f"{kind}, off", "both s"), (*columns, "times as fast"))
        print()
    results.print_machine()


def _step(folder: Path, options: argparse.Namespace) -> Callable[[str, bool], Values]:
    """A function from the kind of grading, and whether it begins while sampling, to the seconds of one step."""
    import torch
    from pydantic import TypeAdapter
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from luspo_cli.config.reward import RewardConfig
    from luspo_cli.evaluation.sampling import choose_dtype
    from luspo_cli.policy import attention
    from luspo_cli.processes.ranks import ALONE
    from luspo_cli.records import Message, Problem, Prompt
    from luspo_cli.rewards.rubric import Rubric
    from luspo_cli.rollout.in_process.packed import sampling_model
    from luspo_cli.rollout.in_process.sampler import InProcessSampler
    from luspo_cli.rollout.sampler import SamplingOptions
    from luspo_cli.training.sampling import sample_and_score

    (folder / "own.py").write_text(FUNCTIONS)
    model_folder = random_model(folder / "model", options.size)
    attention.register()
    dtype = choose_dtype("auto", None)
    model = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=getattr(torch, dtype), attn_implementation=attention.NAME
    ).to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    ends = range(2, 2 + model.config.vocab_size // END_SHARE)
    sampler = InProcessSampler(sampling_model(model, dtype), tokenizer, ends, max_rows=options.rows)
    problems = [
        Problem(str(i), (Message("user", f"{i} + {i}?"),), "0", "sums", extra={"seconds": options.seconds})
        for i in range(options.rows // GROUP)
    ]
    draws = SamplingOptions(GROUP, options.tokens, seed=1)
    paid: dict[str, Any] = {}

    def prompt(problem: Problem) -> Prompt:
        return Prompt(problem.id, tuple(tokenizer.encode(problem.prompt[0].content)))

    def step(kind: str, on: bool) -> Values:
        function = {"function": f"{folder / 'own.py'}:{kind}", "verifier": "function", "function_seconds": 2.0}
        settings = {**function, "while_sampling": on}
        with Rubric(TypeAdapter(RewardConfig).validate_python(settings), options.tokens) as rubric:
            rubric.score_groups(problems[:1], [[_blank(problems[0].id)] * 16])  # starts the workers
            scored = sample_and_score(ALONE, sampler, rubric, problems, prompt, draws, keep_images=False)
        totals = [reward.total for group in scored.rewards for reward in group]
        if paid.setdefault(kind, totals) != totals:
            sys.exit(f"{kind}: the rewards of grading while sampling are others than those afterwards")
        return {
            "sampling s": scored.rollout_s,
            "then grading s": scored.reward_s,
            "both s": scored.rollout_s + scored.reward_s,
        }

    return step


def _blank(problem: str) -> Any:
    from luspo_cli.records import Rollout, StopReason

    return Rollout(problem, (1,), (1,), "", StopReason.END)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
