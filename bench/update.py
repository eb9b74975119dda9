"""FLOP/s of one update: ours, one plain packed forward and backward of transformers, and the GEMM peak measured in the same run.

    python -m bench update --model FOLDER [--prompts 4] [--group-size 8] [--prompt-tokens 100] [--tokens 200] [--json FILE]
    python -m bench update --smoke

Both sides train on the same rows in micro-batches of the same tokens, with float32 weights and the same passes. `plain` lays
the rows of a micro-batch end to end and takes the mean cross-entropy of whole logits, the optimizer left out; `plain,
recomputed` does so with activation checkpointing. Useful tokens are those of all rows, each prompt as often as it has
responses, whatever a side computes of them; useful FLOP/s count three forward passes over them, with the head on response
tokens alone.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from results import FAILED, Values, print_table, with_ratio
from shared.child import device_peak_gib, reset_peak, resident_peak_gib, run_child, say, wait_for_device
from shared.limits import LIMITS, measured_limits, print_limits
from shared.models import forward_flops
from shared.options import device_of, environment_of, model_of, parser_of, results_of, smallest

SIDES = ("luspo", "plain", "plain, recomputed")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=200, help="of a response at most; at least half as many")
    parser.add_argument("--micro-tokens", type=int, default=2400, help="of a micro-batch")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--set", dest="sets", action="append", default=[], help="a setting of luspo's")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        say(_ours(options) if options.child == "luspo" else _plain(options, options.child != "plain"))
        return
    smallest(options, prompts=2, group_size=4, prompt_tokens=8, tokens=12, micro_tokens=64)
    results = results_of("update", options)
    with tempfile.TemporaryDirectory() as folder:
        options.model = model_of(options, Path(folder))
        cases: dict[str, Callable[[], Values]] = {side: partial(_in_child, options, side) for side in options.sides}
        cases[LIMITS] = partial(measured_limits, device_of(options), smoke=options.smoke)
        medians = results.interleaved(cases, options.repeats)
        limits = medians.pop(LIMITS)
        shown = {side: _rates(options, found, limits) for side, found in medians.items()}
    print(
        f"\n{options.passes} passes, medians of {options.repeats}; {options.prompts} prompts x {options.group_size} responses\n"
    )
    if "plain" in shown:
        shown = with_ratio(shown, "plain", "seconds", "to plain")
    columns = ("seconds", "optimizer", "useful tokens/s", "useful GFLOP/s", "of the GEMM peak", "peak GiB", "to plain")
    print_table("forward and backward", shown, columns)
    print()
    print_limits(limits)
    results.print_machine()


def _in_child(options: argparse.Namespace, side: str) -> Values:
    command = [sys.executable, __file__, "--child", side, "--model", options.model]
    for name in ("prompts", "group_size", "prompt_tokens", "tokens", "micro_tokens"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    command += [part for setting in options.sets for part in ("--set", setting)]
    return run_child(
        [*command, "--passes", options.passes, *["--gpu"] * options.gpu],
        limit_s=options.limit,
        environment=environment_of(options),
    )


def _rates(options: argparse.Namespace, found: Values, limits: Values) -> Values:
    """What was measured with the rates that follow."""
    if FAILED in found:
        return found
    from transformers import AutoConfig

    rows = made_rows(options, 100)
    lengths = [len(prompt) + len(response) for prompt, response in rows]
    flops = 3 * forward_flops(
        AutoConfig.from_pretrained(options.model), lengths, sum(len(response) for _, response in rows)
    )
    return found | {
        "useful tokens/s": sum(lengths) / found["seconds"],
        "useful GFLOP/s": flops / found["seconds"] / 1e9,
        "of the GEMM peak": flops / found["seconds"] / limits[f"GEMM {options.passes} FLOP/s"],
    }


def made_rows(options: argparse.Namespace, vocabulary: int) -> list[tuple[list[int], list[int]]]:
    """Prompt and response tokens of every row, the same in each process; responses of half to all of `--tokens`."""
    source, found = random.Random(0), []
    for _ in range(options.prompts):
        prompt = [source.randrange(3, vocabulary) for _ in range(options.prompt_tokens)]
        for _ in range(options.group_size):
            length = source.randint(max(1, options.tokens // 2), options.tokens)
            found.append((prompt, [source.randrange(3, vocabulary) for _ in range(length)]))
    return found


def _timed(work: Callable[[], float], repeats: int = 2) -> dict[str, float]:
    """The median of the seconds that `work` says it took, after one warm-up, and the peak of memory."""
    work()
    reset_peak()
    seconds = [work() for _ in range(repeats)]
    return {"seconds": median(seconds), "peak GiB": max(device_peak_gib(), 0.0) or resident_peak_gib()}


def _ours(options: argparse.Namespace) -> Values:
    from shared.engine import configuration, prepared_stages, sums_in
    from transformers import AutoTokenizer

    from luspo_cli.records import Problem, Rollout, ScoredGroup, StopReason

    size = options.group_size
    sets = [
        f"rollout.group_size={size}", f"rollout.problems={options.prompts}", f"rollout.max_response_tokens={options.tokens}",
        f"rollout.max_rows={size}", f"update.tokens_per_micro_batch={options.micro_tokens}",
        "rollout.sampler=in-process", f"model.compute_dtype={options.passes}", *options.sets,
    ]  # fmt: skip
    rows = made_rows(options, len(AutoTokenizer.from_pretrained(options.model)) - 1)
    rollouts = [
        Rollout(str(place // size), tuple(prompt), tuple(response), "", StopReason.END)
        for place, (prompt, response) in enumerate(rows)
    ]
    groups = [
        ScoredGroup(
            Problem(str(number), (), "", ""),
            tuple(rollouts[number * size : (number + 1) * size]),
            (),
            tuple(1.0 if row % 2 else -1.0 for row in range(size)),
        )
        for number in range(options.prompts)
    ]
    optimizer: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(options.model, sums_in(Path(folder) / "data"), sets)
        with prepared_stages(config, Path(folder) / "run") as (stages, _):
            stages.release_sampler()  # as the loop does before an update

            def work() -> float:
                metrics = stages.updater.update(groups, 1e-6)
                wait_for_device()
                optimizer.append(metrics["time/optimizer"])
                return metrics["time/update"] - metrics["time/optimizer"]

            found = _timed(work)
    return found | {"optimizer": median(optimizer[1:])}


def _plain(options: argparse.Namespace, recomputed: bool) -> Values:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = device_of(options)
    model: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, attn_implementation="sdpa")
    model.to(device).train()
    if recomputed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    rows = [
        prompt + response
        for prompt, response in made_rows(options, len(AutoTokenizer.from_pretrained(options.model)) - 1)
    ]
    packs: list[list[list[int]]] = [[]]
    for row in rows:
        if packs[-1] and sum(map(len, packs[-1])) + len(row) > options.micro_tokens:
            packs.append([])
        packs[-1].append(row)

    def work() -> float:
        model.zero_grad(set_to_none=True)
        wait_for_device()
        began = time.perf_counter()
        for pack in packs:
            tokens = torch.tensor([[token for row in pack for token in row]], device=device)
            # Positions that begin anew tell transformers where a row ends: its attention keeps rows apart.
            places = torch.tensor([[place for row in pack for place in range(len(row))]], device=device)
            with torch.autocast(device, torch.bfloat16, enabled=options.passes == "bfloat16"):
                loss = model(input_ids=tokens, position_ids=places, labels=tokens, use_cache=False).loss
            (loss / len(packs)).backward()
        wait_for_device()
        return time.perf_counter() - began

    return _timed(work) | {"optimizer": 0.0}


if __name__ == "__main__":
    main()
