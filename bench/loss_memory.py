"""Peak memory of log-probs and loss against response length and vocabulary: ours beside the plain way over whole logits.

    python -m bench loss_memory [--lengths 512 2048 8192] [--vocabularies 32000 151936] [--json FILE]
    python -m bench loss_memory --smoke

From the last hidden states (of the type of the passes) and the head (float32) to the gradients of both, without the model; the
peak counts from there on. `gradients` is what both ways must hold in the end: those of the head, in float32, and of the hidden
states.
`beyond` is the rest. Both print the loss, which must agree. Last the exponents of `beyond` in the length and in the
vocabulary: 0 is "does not grow", 1 "grows with it".
"""

from __future__ import annotations

import argparse
import math
import sys
from functools import partial
from typing import Any

from results import FAILED, Values, exponent, print_table
from shared.child import (
    device_peak_gib,
    give_back_free_memory,
    reset_peak,
    resident_gib,
    resident_peak_gib,
    run_child,
    say,
    wait_for_device,
)
from shared.options import device_of, environment_of, parser_of, results_of, smallest

SIDES = ("luspo", "plain")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_000, 151_936])
    parser.add_argument("--width", type=int, default=896)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        say(_measured(options, options.lengths[0], options.vocabularies[0]))
        return
    smallest(options, lengths=[256, 1024], vocabularies=[8_000, 32_000], width=64)
    results = results_of("loss memory", options)
    cases = {
        (side, length, vocabulary): f"{side}, {length:,} tokens, {vocabulary:,} words"
        for length in options.lengths
        for vocabulary in options.vocabularies
        for side in SIDES
    }
    medians = results.interleaved(
        {name: partial(_in_child, options, *case) for case, name in cases.items()}, options.repeats
    )
    print(f"\nmedians of {options.repeats}\n")
    print_table("MiB", medians, ("peak", "gradients", "beyond", "loss"))
    print()
    print_table("exponent of beyond in", _exponents(cases, medians), SIDES)
    results.print_machine()


def _exponents(cases: dict[tuple[str, int, int], str], medians: dict[str, Values]) -> dict[str, Values]:
    """Of the length at the largest vocabulary, and the other way round."""
    found: dict[str, Values] = {}
    longest, largest = max(length for _, length, _ in cases), max(vocabulary for *_, vocabulary in cases)
    for name, place, kept in (("length", 1, (2, largest)), ("vocabulary", 2, (1, longest))):
        found[name] = {
            side: exponent(
                [
                    (case[place], medians[row]["beyond"])
                    for case, row in cases.items()
                    if case[0] == side and case[kept[0]] == kept[1] and FAILED not in medians[row]
                ]
            )
            for side in SIDES
        }
    return found


def _in_child(options: argparse.Namespace, side: str, length: int, vocabulary: int) -> Values:
    command = [sys.executable, __file__, "--child", side, "--lengths", str(length), "--vocabularies", str(vocabulary)]
    command += ["--width", str(options.width), "--rows", str(options.rows), "--passes", options.passes]
    command += ["--gpu"] * options.gpu
    return run_child(command, limit_s=options.limit, environment=environment_of(options))


def _measured(options: argparse.Namespace, length: int, vocabulary: int) -> Values:
    import torch

    from luspo_cli.objectives import policy_loss

    device = device_of(options)
    torch.manual_seed(0)
    number = options.rows * length
    hidden = torch.randn(number, options.width, device=device).to(getattr(torch, options.passes)).requires_grad_()
    head = (torch.randn(vocabulary, options.width, device=device) * 0.02).requires_grad_()
    targets = torch.randint(vocabulary, (number,), device=device)
    mask = torch.ones(options.rows, length, dtype=torch.bool, device=device)
    advantages = torch.ones(options.rows, device=device)
    way = _ours if options.child == "luspo" else _plain
    few = min(8, number)  # kernels and threads take memory of their own, once
    way(hidden.detach()[:few].requires_grad_(), head, targets[:few]).sum().backward()
    head.grad = None
    wait_for_device()
    give_back_free_memory()
    reset_peak()
    before = torch.cuda.memory_allocated() / 2**30 if options.gpu else resident_gib()
    logprobs = way(hidden, head, targets).view(options.rows, length)
    # Against old log-probs that are the same everywhere: the loss then shows whether the log-probs agree.
    old = torch.full_like(logprobs, -math.log(vocabulary))
    loss: Any = policy_loss("grpo", logprobs, old, advantages, mask, clip_low=0.9, clip_high=9.0).loss
    loss.backward()
    wait_for_device()
    peak = (device_peak_gib() if options.gpu else resident_peak_gib()) - before
    assert hidden.grad is not None
    assert head.grad is not None
    gradients = (hidden.grad.nbytes + head.grad.nbytes) / 2**30
    return {
        "peak": peak * 1024,
        "gradients": gradients * 1024,
        "beyond": (peak - gradients) * 1024,
        "loss": float(loss.detach()),
    }


def _ours(hidden: Any, head: Any, targets: Any) -> Any:
    from luspo_cli.policy.logprobs import token_logprobs

    return token_logprobs(hidden, head, targets, 1.0, False)[0]


def _plain(hidden: Any, head: Any, targets: Any) -> Any:
    import torch

    logits = torch.nn.functional.linear(hidden, head.to(hidden.dtype)).float()
    return torch.log_softmax(logits, -1).gather(-1, targets[:, None])[:, 0]


if __name__ == "__main__":
    main()
