"""Tokens/s of four ways to sample (ours, transformers' generate and continuous batching, vLLM) and what the machine allows.

    python -m bench rollout --model FOLDER [--rows 32 64] [--tokens 200] [--vllm-python PYTHON] [--only in-process vllm]
    python -m bench rollout --smoke             # a random model, the smallest sizes; vLLM only where --vllm-python is given

Length is fixed (no token ends a response), so every system does the same work. Each runs in a process of its own, in turns,
vLLM with the interpreter of another environment where `--vllm-python` names one; the start is not counted, and a few tokens
come first, unmeasured. The bound: a decode step reads all weights and each row's cache once, and multiplies each weight with
each row; it takes no less than either at the bandwidth and the GEMM rate measured in the same run.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from results import FAILED, Values, print_table
from shared.child import run_child, say, wait_for_device
from shared.limits import LIMITS, measured_limits, print_limits
from shared.models import forward_flops, parameters_of
from shared.options import device_of, environment_of, model_of, parser_of, results_of, smallest, threads_of

QUESTION = "A baker sells {} loaves a day for {} days. How many loaves is that? Think step by step."
SYSTEMS = ("in-process", "generate", "continuous", "vllm")
MORE_SYSTEMS = ("plain",)
"""The in-process sampler without its packed copy of the weights."""
WARM_UP_TOKENS = 4
BYTES = {"bfloat16": 2, "float32": 4}
Prompts = list[list[int]]
Run = Callable[[Prompts, int], float]
"""Prompts (one a rollout) and tokens → seconds."""


def main() -> None:
    options = _parsed()
    if options.child:
        _child(options)
        return
    results = results_of("rollout", options)
    with tempfile.TemporaryDirectory() as folder:
        options.model = model_of(options, Path(folder))
        cases: dict[str, Callable[[], Values]] = {
            system: partial(_in_child, system, options) for system in options.only
        }
        cases[LIMITS] = partial(measured_limits, device_of(options), smoke=options.smoke)
        medians = results.interleaved(cases, options.repeats)
        columns = tuple(f"{rows} rows" for rows in options.rows)
        bound = {f"{rows} rows": _bound(options, rows, medians[LIMITS]) for rows in options.rows}
    shown: dict[str, Values] = {system: medians[system] for system in options.only}
    others = [
        found for system, found in shown.items() if system not in ("in-process", *MORE_SYSTEMS) and FAILED not in found
    ]
    print(f"\ntokens/s of rollouts of {options.tokens} tokens, groups of {options.group_size}, {threads_of()} threads,")
    print(f"{options.passes}, medians of {options.repeats}\n")
    own = shown.get("in-process", {})
    shown["bound"] = bound
    print_table("tokens/s", shown, columns, digits=0)
    print()
    ratios: dict[str, Values] = {}
    if others and columns[0] in own:
        best = {column: max(found[column] for found in others) for column in columns}
        ratios["in-process, to the best of the others"] = {column: own[column] / best[column] for column in columns}
    if columns[0] in own:
        ratios["in-process, share of the bound"] = {column: own[column] / bound[column] for column in columns}
    print_table("ratio", ratios, columns)
    print()
    print_limits(medians[LIMITS])
    results.print_machine()


def _parsed() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--only", choices=SYSTEMS + MORE_SYSTEMS, nargs="+", default=list(SYSTEMS))
    parser.add_argument("--vllm-python", default=sys.executable, help="interpreter of the environment that has vllm")
    parser.add_argument("--child", choices=SYSTEMS + MORE_SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.child:
        smallest(options, rows=[8, 16], tokens=8)
        if options.smoke and options.vllm_python == sys.executable:
            options.only = [system for system in options.only if system != "vllm"]
    return options


def _in_child(system: str, options: argparse.Namespace) -> Values:
    """One system in a process of its own, so that none finds memory, threads or caches of another."""
    python = options.vllm_python if system == "vllm" else sys.executable
    command = [python, __file__, "--child", system, "--model", options.model, "--tokens", str(options.tokens)]
    command += ["--group-size", str(options.group_size), "--rows", *map(str, options.rows)]
    command += ["--passes", options.passes, *["--gpu"] * options.gpu]
    # OMP_NUM_THREADS among it: vLLM's parallel loops read it before any of its code runs.
    return run_child(command, limit_s=options.limit, environment=environment_of(options))


def _bound(options: argparse.Namespace, rows: int, limits: Values) -> float:
    """Tokens/s that no sampler with such weights exceeds which reads weights and cache once a step and each prompt once."""
    from transformers import AutoConfig, AutoTokenizer

    config, tokenizer = AutoConfig.from_pretrained(options.model), AutoTokenizer.from_pretrained(options.model)
    prompts = rows // options.group_size
    prompt = len(tokenizer.encode(QUESTION.format(3, 5)))
    parts = parameters_of(config)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width, rate = BYTES[options.passes], limits[f"GEMM {options.passes} FLOP/s"]
    cached = 2 * width * config.num_hidden_layers * config.num_key_value_heads * size * (prompt + options.tokens / 2)
    weights = parts["layers"] + parts["head"]
    read = (width * weights + rows * cached) / limits["read B/s"]
    multiplied = 2 * weights * rows / rate
    prefill = forward_flops(config, [prompt] * prompts, prompts) / rate
    return rows * options.tokens / (prefill + options.tokens * max(read, multiplied))


def _child(options: argparse.Namespace) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    size = options.group_size
    longest = 128 + options.tokens
    rates = {}
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
            rates[f"{rows} rows"] = len(prompts) * options.tokens / run(prompts, options.tokens)
    say(rates)


def _ours(sampler: Any, group_size: int) -> Run:
    from luspo_cli.records import Prompt
    from luspo_cli.rollout.sampler import SamplingOptions

    def run(prompts: Prompts, tokens: int) -> float:
        named = [Prompt(str(i), tuple(prompt)) for i, prompt in enumerate(prompts[::group_size])]
        start = time.perf_counter()
        groups = sampler.sample_groups(named, SamplingOptions(group_size, tokens))
        wait_for_device()
        seconds = time.perf_counter() - start
        assert all(rollout.response_length == tokens for group in groups for rollout in group)
        return seconds

    return run


def _in_process(options: argparse.Namespace, tokenizer: Any, longest: int) -> Iterator[Run]:
    import torch
    from transformers import AutoModelForCausalLM

    from luspo_cli.policy import attention
    from luspo_cli.rollout.in_process.packed import sampling_model
    from luspo_cli.rollout.in_process.sampler import InProcessSampler

    attention.register()
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=getattr(torch, options.passes), attn_implementation=attention.NAME
    ).to(device_of(options))
    own = model if options.child == "plain" else sampling_model(model, options.passes)
    yield _ours(InProcessSampler(own, tokenizer, [], max_rows=1024), options.group_size)


def _vllm(options: argparse.Namespace, tokenizer: Any, longest: int) -> Iterator[Run]:
    from luspo_cli.rollout.vllm.engine import EngineSettings, VllmSampler

    settings = EngineSettings(
        options.model, options.passes, longest, max(options.rows), temperature=1.0, load_weights_of_folder=True
    )
    sampler = VllmSampler(settings, tokenizer, [])
    yield _ours(sampler, options.group_size)
    sampler.close()


def _stock(options: argparse.Namespace) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return (
        AutoModelForCausalLM.from_pretrained(
            options.model, dtype=getattr(torch, options.passes), attn_implementation="sdpa"
        )
        .eval()
        .to(device_of(options))
    )


def _generate(options: argparse.Namespace, tokenizer: Any, longest: int) -> Iterator[Run]:
    import torch

    model = _stock(options)

    def run(prompts: Prompts, tokens: int) -> float:
        width = max(map(len, prompts))
        padded = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        padded, mask = padded.to(model.device), mask.to(model.device)
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
        wait_for_device()
        seconds = time.perf_counter() - start
        assert out.shape[1] == width + tokens
        return seconds

    yield run


def _continuous(options: argparse.Namespace, tokenizer: Any, longest: int) -> Iterator[Run]:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = _stock(options)
    # On a CPU the size of its cache must be given: room for every row at full length, in pages of 256 tokens.
    pages = -(-longest // 256) * max(options.rows) + 8
    batching = ContinuousBatchingConfig(**({} if options.gpu else {"num_blocks": pages, "max_batch_tokens": 4096}))

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
