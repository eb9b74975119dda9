"""Tokens per second of four ways to sample, one run, same prompts: ours, transformers' generate and continuous batching, vLLM.

    python bench/rollout.py --model FOLDER [--rows 32 64] [--tokens 200] [--vllm-python PYTHON] [--only in-process vllm]

Length is fixed (no token ends a response), so every system does the same work. Each runs in a process of its own, vLLM with the
interpreter of another environment where `--vllm-python` names one; the start is not counted, and a few tokens come first,
unmeasured.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

QUESTION = "A baker sells {} loaves a day for {} days. How many loaves is that? Think step by step."
SYSTEMS = ("in-process", "generate", "continuous", "vllm")
MORE_SYSTEMS = ("plain",)
"""The in-process sampler without its packed copy of the weights."""
WARM_UP_TOKENS = 4
Prompts = list[list[int]]
Run = Callable[[Prompts, int], float]
"""Prompts (one a rollout) and tokens → seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--only", choices=SYSTEMS + MORE_SYSTEMS, nargs="+", default=list(SYSTEMS))
    parser.add_argument("--vllm-python", default=sys.executable, help="interpreter of the environment that has vllm")
    parser.add_argument("--child", choices=SYSTEMS + MORE_SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(options)
        return
    print(f"tokens/s of rollouts of {options.tokens} tokens, groups of {options.group_size}, {_threads()} threads")
    print(f"{'':>12}" + "".join(f"{rows:>5} rows" for rows in options.rows))
    rates: dict[str, list[float]] = {}
    for system in options.only:
        rates[system] = _in_child(system, options)
        print(f"{system:>12}" + "".join(f"{rate:>10.0f}" for rate in rates[system]), flush=True)
    others = [found for system, found in rates.items() if system not in ("in-process", *MORE_SYSTEMS)]
    if "in-process" in rates and others:
        best = [max(column) for column in zip(*others, strict=True)]
        shares = [own / other for own, other in zip(rates["in-process"], best, strict=True)]
        print(f"{'to the best':>12}" + "".join(f"{share:>10.2f}" for share in shares))


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def _in_child(system: str, options: argparse.Namespace) -> list[float]:
    """One system in a process of its own, so that none finds memory, threads or caches of another."""
    python = options.vllm_python if system == "vllm" else sys.executable
    command = [python, __file__, "--child", system, "--model", options.model, "--tokens", str(options.tokens)]
    command += ["--group-size", str(options.group_size), "--rows", *map(str, options.rows)]
    root = str(Path(__file__).resolve().parents[1])
    # vLLM's parallel loops read this before any of its code runs.
    environment = {"OMP_NUM_THREADS": str(_threads()), **os.environ, "PYTHONPATH": root}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{system} failed with status {done.returncode}")
    return [float(rate) for rate in json.loads(done.stdout.strip().splitlines()[-1])]


def _child(options: argparse.Namespace) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    size = options.group_size
    longest = 128 + options.tokens
    rates = []
    systems = {
        "in-process": _in_process,
        "plain": _in_process,
        "generate": _generate,
        "continuous": _continuous,
        "vllm": _vllm,
    }
    for run in systems[options.child](options, tokenizer, longest):
        for rows in options.rows:
            prompts = [
                tokenizer.encode(QUESTION.format(i + 3, i + 5)) for i in range(rows // size) for _ in range(size)
            ]
            run(prompts, WARM_UP_TOKENS)
            gc.collect()
            rates.append(len(prompts) * options.tokens / run(prompts, options.tokens))
    print(json.dumps(rates))


def _ours(sampler: Any, group_size: int) -> Run:
    from luspo_cli.records import Prompt
    from luspo_cli.rollout.sampler import SamplingOptions

    def run(prompts: Prompts, tokens: int) -> float:
        named = [Prompt(str(i), tuple(prompt)) for i, prompt in enumerate(prompts[::group_size])]
        start = time.perf_counter()
        groups = sampler.sample_groups(named, SamplingOptions(group_size, tokens))
        seconds = time.perf_counter() - start
        assert all(rollout.response_length == tokens for group in groups for rollout in group)
        return seconds

    return run


def _in_process(options: argparse.Namespace, tokenizer: Any, longest: int) -> Iterator[Run]:
    import torch
    from transformers import AutoModelForCausalLM

    from luspo_cli.policy import attention
    from luspo_cli.rollout.in_process.packed import bfloat16_copy
    from luspo_cli.rollout.in_process.sampler import InProcessSampler

    attention.register()
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=torch.bfloat16, attn_implementation=attention.NAME
    )
    own = model if options.child == "plain" else bfloat16_copy(model)
    yield _ours(InProcessSampler(own, tokenizer, [], max_rows=1024), options.group_size)


def _vllm(options: argparse.Namespace, tokenizer: Any, longest: int) -> Iterator[Run]:
    from luspo_cli.rollout.vllm.engine import EngineSettings, VllmSampler

    settings = EngineSettings(
        options.model, "bfloat16", longest, max(options.rows), temperature=1.0, load_weights_of_folder=True
    )
    sampler = VllmSampler(settings, tokenizer, [])
    yield _ours(sampler, options.group_size)
    sampler.close()


def _stock(options: argparse.Namespace) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16, attn_implementation="sdpa").eval()


def _generate(options: argparse.Namespace, tokenizer: Any, longest: int) -> Iterator[Run]:
    import torch

    model = _stock(options)

    def run(prompts: Prompts, tokens: int) -> float:
        width = max(map(len, prompts))
        padded = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        settings = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                input_ids=padded,
                attention_mask=mask,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                pad_token_id=0,
                **settings,
            )
        seconds = time.perf_counter() - start
        assert out.shape[1] == width + tokens
        return seconds

    yield run


def _continuous(options: argparse.Namespace, tokenizer: Any, longest: int) -> Iterator[Run]:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = _stock(options)
    # On a CPU the size of its cache must be given: room for every row at full length, in pages of 256 tokens.
    pages = -(-longest // 256) * max(options.rows) + 8
    batching = ContinuousBatchingConfig(num_blocks=pages, max_batch_tokens=4096)

    def run(prompts: Prompts, tokens: int) -> float:
        settings = GenerationConfig(
            max_new_tokens=tokens, eos_token_id=-1, pad_token_id=0, do_sample=True, temperature=1.0, top_p=1.0, top_k=0
        )
        start = time.perf_counter()
        answers = model.generate_batch(inputs=prompts, generation_config=settings, continuous_batching_config=batching)
        seconds = time.perf_counter() - start
        assert len(answers) == len(prompts)
        assert all(len(answer.generated_tokens) == tokens for answer in answers.values())
        return seconds

    yield run


if __name__ == "__main__":
    main()
