"""A random model with a vocabulary of answers, and problems for it: what runs from files and symbolic rewards need.

Its tokens are whole answers such as `\\boxed{\\frac{x}{2}}`. Comparing the sums among them needs math-verify, so the
reward workers have work.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from doubles.models import random_qwen2, save, word_tokenizer

SUMS = (r"\sum_{k=1}^{3}x", r"\sum_{k=1}^{2}\frac{x}{4}", r"\sum_{k=0}^{1}(x-k-1)", r"\sum_{k=1}^{4}\frac{k x}{5}")
ANSWERS = ("x+1", "1+x", r"\frac{x}{2}", "x/2", "0.5x", "2x-3", "x^2", "x*x", "x+2", r"\sqrt{x}", "x-1", "3x", *SUMS)
GOLDS = ("x+1", r"\frac{x}{2}", "2x-3", "x^2")
SIGNS = ("+", "-", *map(str, range(10)))
PROBLEMS = 8


def words() -> list[str]:
    return ["<pad>", "<end>", *(rf"\boxed{{{answer}}}" for answer in ANSWERS), *SIGNS]


def make_model(folder: Path, *, poison: str = "") -> None:
    """Write a random Qwen2 model; `poison`: `nan` in a weight, or `inf`: weights whose gradient's norm has no float32."""
    import torch

    tokenizer = word_tokenizer(words(), split=r"\s+")
    model = random_qwen2(len(words()))
    with torch.no_grad():
        if poison == "nan":
            model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
        if poison == "inf":  # the same logits; the gradient of the norm's weights is beyond what float32 can square
            model.model.norm.weight *= 1e-25
            model.lm_head.weight *= 1e25
    save(folder, model, tokenizer)


def make_problems(file: Path, *, images: str = "", problems: int = PROBLEMS) -> None:
    """Write problems in verl's layout; `images`: the path of an image that the first one has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = [
        {
            "data_source": "made",
            "prompt": [{"role": "user", "content": f"{i % 10} + {i // 10}"}],
            "reward_model": {"ground_truth": GOLDS[i % len(GOLDS)], "style": "rule"},
            "extra_info": {"index": i, "split": "train"},
        }
        for i in range(problems)
    ]
    if images:
        rows[0]["prompt"][0]["content"] += " <image>"
        rows = [row | {"images": [images] if i == 0 else []} for i, row in enumerate(rows)]
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)


def make_configuration(file: Path, model: Path, data: Path) -> None:
    """Write a run on such a model and such problems."""
    file.write_text(
        f"""
[objective]
name = "luspo"

[model]
path = {json.dumps(str(model))}

[data]
train = {json.dumps(str(data))}
max_prompt_tokens = 64

[rollout]
problems = 4
group_size = 4
max_response_tokens = 12
max_rows = 8

[reward]
workers = 2
overlong_buffer = 8

[update]
mini_batches = 2
learning_rate = 1e-3
tokens_per_micro_batch = 128

[run]
steps = 6
checkpoint_every = 2
rollouts_every = 2
threads = 1
"""
    )
