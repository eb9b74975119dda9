"""One step of reinforcement learning: luspo beside TRL's GRPOTrainer with the luspo loss, on the same model, prompts and lengths.

    python -m bench step --model FOLDER --data FOLDER --trl-python .venv-trl/bin/python [--json FILE]
    python -m bench step --smoke [--trl-python PYTHON]        # a random model, the smallest sizes
    python -m bench step ... --gpu                            # on a CUDA device, both sides

Each measurement is a process of its own: a few steps, of which the first are a warm-up. Sides take turns, so that what drifts
on the machine meets all of them. Modes: `natural` (the task's rewards and lengths), `mixed` (forced rewards and equal lengths:
every row is trained), `half` (forced rewards, both sides train on the same recorded responses; their own sampling is still
timed). Then luspo with each of its tricks off, in the phase that it touches, beside luspo as it is. `beyond` is the peak less
weights, gradients and moments.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from results import FAILED, Results, Values, print_table, with_ratio
from shared.child import BENCH, run_child
from shared.forced import MODES
from shared.options import PASSES, environment_of, model_of, parser_of, results_of, smallest, threads_of

SIDES = ("luspo", "trl equal", "trl default", "trl bf16")
BASELINE = "trl equal"
"""Float32 weights, the same passes, nothing recomputed, as on our side."""
CLIP = 2e-3, 2.5e-3


@dataclass(frozen=True, slots=True)
class Trick:
    """Something of luspo's that can be switched off."""

    phase: str
    mode: str
    """In which it has work to do."""
    sets: tuple[str, ...] = ()
    """Settings without it."""
    on: tuple[str, ...] = ()
    """Settings with it, where it is off unless asked for: a kernel for a GPU."""
    passes: tuple[str, ...] = PASSES
    """In which it has work to do, of `--passes`."""


LIGER = "liger's head"
TRICKS = {
    "skip rows without advantage": Trick("update", "half", ("update.skip_rows_without_advantage=false",)),
    "prompt once": Trick("update", "mixed"),
    "spare memory": Trick("update", "mixed", ("update.spare_memory=false",)),
    "fused optimizer": Trick("update", "mixed"),
    "packed weights": Trick("rollout", "mixed"),
    "recorded decode step": Trick("rollout", "mixed", passes=("float32",)),
    "varlen attention": Trick("update", "mixed", on=("model.kernels.attention=varlen",)),
    LIGER: Trick("update", "mixed", on=("model.kernels.head=liger",)),
    "decode graph": Trick("rollout", "mixed", on=("model.kernels.decode=graph",)),
}
COLUMNS = (
    "step",
    "rollout",
    "reward",
    "update",
    "peak GiB",
    "state GiB",
    "beyond GiB",
    "rows trained",
    "response tokens",
)


def main() -> None:
    options = parsed()
    results = results_of("RL step", options)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        base = specification(options, work)
        for mode in options.modes:
            compare_sides(results, options, base, work, mode)
        for name in options.tricks:
            compare_trick(results, options, base, work, name, TRICKS[name])
    results.print_machine()


def parsed() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--data", help="a folder of luspo prepare-data; without it sums are made")
    parser.add_argument("--trl-python", default=".venv-trl/bin/python", help="interpreter with trl 1.16 (make peers)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES))
    parser.add_argument(
        "--tricks",
        nargs="*",
        choices=TRICKS,
        help="that are switched off in turn; kernels of a GPU only with --gpu or by name",
    )
    parser.add_argument("--problems", type=int, default=4, help="a step")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200, help="of a response, at most")
    parser.add_argument("--steps", type=int, default=2, help="of one measurement")
    parser.add_argument("--warm-up", type=int, default=1, help="of them, first and not counted")
    parser.add_argument("--micro-rows", type=int, default=8, help="rows of a micro-batch; ours has as many tokens")
    parser.add_argument("--set", dest="sets", action="append", default=[], help="a setting of luspo's")
    options = parser.parse_args()
    if options.tricks is None:
        options.tricks = [name for name, trick in TRICKS.items() if options.gpu or not trick.on]
    smallest(options, problems=2, group_size=4, tokens=12, micro_rows=4)
    if options.modes and {*options.sides} - {"luspo"} and not shutil.which(options.trl_python):
        if not options.smoke:
            parser.error(f"--trl-python {options.trl_python} is not there: make peers builds it, or give --sides luspo")
        print(f"{options.trl_python} is not there: without TRL's sides")
        options.sides = ["luspo"]
    if options.warm_up >= options.steps:
        parser.error("--warm-up must be smaller than --steps")
    return options


def specification(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """What all sides are told; makes the model and the problems where none is named."""
    from shared.engine import sums_in

    from luspo_cli.data.problems import load_problems

    needed = options.problems * options.steps
    data = options.data or sums_in(work / "data", needed)
    problems = load_problems(data)[:needed]
    model = model_of(options, work)
    prompts = [[asdict(message) for message in problem.prompt] for problem in problems]
    longest = longest_prompt(model, prompts)
    return {
        "model": model,
        "data": data,
        "problems": [
            {"id": problem.id, "prompt": prompt, "answer": problem.answer}
            for problem, prompt in zip(problems, prompts, strict=True)
        ],
        "problems_a_step": options.problems,
        "group_size": options.group_size,
        "tokens": options.tokens,
        "steps": options.steps,
        "warm_up": options.warm_up,
        "micro_rows": options.micro_rows,
        "micro_tokens": options.micro_rows * (longest + options.tokens),
        "passes": options.passes,
        "threads": 0 if options.gpu else threads_of(),
        "clip": CLIP,
        "sets": [
            *options.sets,
            f"objective.clip_low={CLIP[0]}",
            f"objective.clip_high={CLIP[1]}",
            f"model.compute_dtype={options.passes}",
        ],
        "off": [],
    }


def longest_prompt(model: str, prompts: list[list[dict[str, str]]]) -> int:
    """Tokens of the longest prompt."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return max(len(tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]) for turns in prompts)


def compare_sides(results: Results, options: argparse.Namespace, base: dict[str, Any], work: Path, mode: str) -> None:
    """The table of one mode: every side, and how much faster than TRL at equal numerics luspo is."""
    spec = {**base, "mode": mode}
    sides = [side for side in options.sides if side != "trl bf16" or options.passes == "bfloat16"]
    if mode == "half":
        spec["recorded"] = str(recording(options, spec, work, results))
    cases = {f"{mode}, {side}": partial(measured, options, spec, work, side) for side in sides}
    medians = results.interleaved(cases, options.repeats, said)
    baseline = f"{mode}, {BASELINE if BASELINE in options.sides else options.sides[0]}"
    print(
        f"\n## {mode}, {options.passes} passes: medians of {options.repeats}, seconds and GiB; times as fast as {baseline}\n"
    )
    shown = with_ratio(medians, baseline, "step")
    shown = with_ratio(shown, baseline, "beyond GiB", "of its beyond", inverse=True)
    print_table(mode, shown, (*COLUMNS, "times as fast", "of its beyond"))


def compare_trick(
    results: Results, options: argparse.Namespace, base: dict[str, Any], work: Path, name: str, trick: Trick
) -> None:
    """One trick on and off; the ratio is of the phase that it touches."""
    if options.passes not in trick.passes:
        print(f"\n## {name}: nothing to do with {options.passes} passes")
        return
    spec = {**base, "mode": trick.mode}
    if trick.mode == "half":
        spec["recorded"] = str(recording(options, spec, work, results))
    off = {**spec, "sets": [*spec["sets"], *trick.sets], "off": [] if trick.sets or trick.on else [name]}
    on = {**spec, "sets": [*spec["sets"], *trick.on]}
    on_row, off_row = f"{name}: on", f"{name}: off"
    cases: dict[str, Callable[[], Values]] = {
        on_row: partial(measured, options, on, work, "luspo"),
        off_row: partial(measured, options, off, work, "luspo"),
    }
    medians = results.interleaved(cases, options.repeats, said)
    print(f"\n## {name} ({trick.mode}, {options.passes}): the {trick.phase}\n")
    shown = with_ratio(medians, off_row, trick.phase)
    print_table(name, shown, ("step", trick.phase, "peak GiB", f"{trick.phase} peak GiB", "times as fast"))


def recording(options: argparse.Namespace, spec: dict[str, Any], work: Path, results: Results) -> Path:
    """The responses that mode `half` trains on: drawn once, kept beside the JSON so that a later call goes on with the same."""
    path = results.path.with_suffix(".rollouts.json") if results.path else work / "rollouts.json"
    if not path.is_file():
        found = run_child(
            [*luspo_command(write(spec | {"mode": "natural"}, work)), "--record", str(path.resolve())],
            limit_s=options.limit,
            environment=environment_of(options),
        )
        if FAILED in found:
            sys.exit(f"recording the responses of mode half failed: {found[FAILED]}")
    return path.resolve()


def measured(options: argparse.Namespace, spec: dict[str, Any], work: Path, side: str) -> Values:
    """One process of one side."""
    if side == "luspo":
        command = luspo_command(write(spec, work))
    else:
        own = write(spec | {"variant": side.split()[1]}, work)
        command = [options.trl_python, str(BENCH / "shared/step_trl.py"), str(own)]
    found = run_child(command, limit_s=options.limit, environment=environment_of(options))
    if FAILED in found:
        return found
    held = found["GPU peak GiB"] if options.gpu else found["peak GiB"]
    return found | {"beyond GiB": held - found["state GiB"]}


def luspo_command(spec: Path) -> list[str]:
    return [sys.executable, str(BENCH / "shared/step_luspo.py"), str(spec)]


def write(spec: dict[str, Any], work: Path) -> Path:
    """The specification as a file."""
    path = work / "specification.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    return path


def said(row: str, values: Values) -> None:
    """One line a measurement, so that a long run shows where it is."""
    shown = values.get(FAILED) or f"{values['step']:.2f} s, {values['peak GiB']:.2f} GiB"
    print(f"{row}: {shown}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
