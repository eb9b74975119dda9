"""Memory of loading a model that is shared out (`model.sharding = full`): by process, and of all processes of a machine together.

    python -m bench sharded-loading [--model FOLDER] [--processes N] [--base TREE]

Without `--model` a Qwen2 of 0.39 billion random weights is made, in files of bfloat16 as models are published (0.8 GB of disk,
for the time of the run). Each process loads it in float32 and shares it out, without a sampler or an optimizer. `peak` is its
largest resident size above what it had before (VmHWM; pages of the files that it reads count, which all processes share);
`together` the largest sum of all processes' own memory (RssAnon, ten times a second). `--base`: the same with another checkout's
code, first. The shares are compared bit by bit. Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shared.child import memory_bytes, reset_peak

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a folder with a model; made where left out")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--base", help="another checkout, measured first")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.model)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = options.model or make_model(Path(place))
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        print(f"{options.processes} processes, files of weights {size / MIB:,.0f} MiB\n")
        print(
            "| code | peak of each process (MiB) | together (MiB) | whole copies together |\n| --- | --- | --- | --- |"
        )
        own = Path(__file__).parents[1]
        shares = []
        for name, tree in ((options.base, options.base), ("this checkout", own)):
            if tree is not None:
                found, together = measure(folder, options.processes, Path(tree))
                peaks = ", ".join(f"{one['peak'] / MIB:,.0f}" for one in found)
                copies = together / (4 * found[0]["weights"])
                print(f"| {name} | {peaks} | {together / MIB:,.0f} | {copies:.2f} |", flush=True)
                shares.append([one["sha256"] for one in found])
        if len(shares) == 2:
            print(f"\nevery process's shares are {'the same bit for bit' if shares[0] == shares[1] else 'OTHERS'}")


def make_model(folder: Path) -> str:
    """A random Qwen2 with a tokenizer over bytes."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=100_000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=12, num_attention_heads=16,
        num_key_value_heads=4, eos_token_id=1, bos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="400MB")
    vocabulary = {token: number for number, token in enumerate(("<|end|>", *sorted(ByteLevel.alphabet())))}
    Qwen2Tokenizer(vocab=vocabulary, merges=[], eos_token="<|end|>").save_pretrained(folder)
    return str(folder)


def measure(folder: str, processes: int, tree: Path) -> tuple[list[dict[str, float]], float]:
    """What each process found, and the largest sum of their own memory above that of before, in bytes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, __file__, "--one", "--model", folder]
    variables = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(processes)}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [
        subprocess.Popen(command, env={**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE)
        for rank in range(processes)
    ]
    most = 0.0
    while any(child.poll() is None for child in children):
        own = [memory_bytes("RssAnon", child.pid) for child in children]
        most = max(most, sum(one for one in own if not math.isnan(one)))  # one that has ended has none
        time.sleep(0.1)
    found = [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
    return found, most - sum(one["before"] for one in found)


def one(folder: str) -> None:
    """One process: load the model, share it out, and print what that took."""
    import torch

    from luspo_cli.config.model import ModelConfig
    from luspo_cli.policy.loading import load_model
    from luspo_cli.policy.policy import Policy
    from luspo_cli.processes.ranks import joined
    from luspo_cli.processes.sharding import shard

    torch.set_num_threads(1)
    with joined(600) as ranks:
        import torch.distributed.fsdp
        import transformers.models.qwen2.modeling_qwen2  # noqa: F401

        before, begun_with = memory_bytes("RssAnon"), memory_bytes("VmRSS")
        reset_peak()
        # A checkout from before the first process alone read the weights has no such argument.
        first_reads = "numbers" in inspect.signature(load_model).parameters
        numbers = {"numbers": ranks.is_first} if first_reads else {}
        policy = Policy(load_model(ModelConfig(path=folder, sharding="full"), **numbers).model, 1.0)
        shard(policy, torch.device("cpu"))
        peak = memory_bytes("VmHWM") - begun_with
        digest, weights = hashlib.sha256(), 0
        for _, weight in policy.named_parameters():
            digest.update(weight.to_local().detach().numpy().data)
            weights += weight.numel()
        print(json.dumps({"peak": peak, "before": before, "sha256": digest.hexdigest(), "weights": weights}))


if __name__ == "__main__":
    main()
