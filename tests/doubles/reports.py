"""Stored rollouts written by hand, and the page of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from luspo_cli.analysis.comparison import compare_runs
from luspo_cli.analysis.history import read_runs
from luspo_cli.commands.display.comparison import render_table
from luspo_cli.report.page import write_report

Row = dict[str, Any]


def rollout(problem: str, response: str, **changes: Any) -> Row:
    """One stored rollout as an older version wrote it; its tokens are the characters of the response and an end."""
    right = changes.get("status", "incorrect") == "correct"
    return {
        "problem_id": problem, "prompt": f"What is {problem}?", "answer": "4", "response": response, "extracted": "4",
        "status": "incorrect", "reason": "exact" if right else "different", "read_from": "own_mark",
        "reward": float(right), "reward_accuracy": float(right), "reward_format": 0.0, "reward_overlong": 0.0,
        "advantage": 1.0 if right else -1.0, "in_batch": True, "response_length": len(response) + 1, "stop_reason": "end",
        "response_tokens": [*(ord(one) for one in response), 0],
    } | changes  # fmt: skip


def marked(row: Row, ratios: Sequence[float] | None = None, **changes: Any) -> Row:
    """The same with what the update adds; log-ratios of 0 where none are given."""
    found = [0.0] * len(row["response_tokens"]) if ratios is None else list(ratios)
    return row | {
        "mini_batch": 0, "sequence_ratio": 1.0, "clip_low_fraction": 0.0, "clip_high_fraction": 0.0,
        "dual_clip_fraction": 0.0, "loss_weight": 1.0, "token_log_ratios": found,
    } | changes  # fmt: skip


def write_run(
    below: Path,
    name: str,
    objective: str = "luspo",
    seed: int = 0,
    *,
    steps: int = 4,
    rollouts: Mapping[int, Sequence[Row]] | None = None,
    metrics: Mapping[str, Sequence[float | None]] | None = None,
    tokenizer: str | None = None,
) -> Path:
    """Write a run of one objective and seed with rollouts by step, and a checkpoint with a tokenizer where one is given."""
    folder = below / name
    (folder / "rollouts").mkdir(parents=True)
    objective_section = {"name": objective, "clip_low": 2e-3, "clip_high": 2.5e-3}
    config = {"objective": objective_section, "run": {"steps": steps, "seed": seed}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    named: dict[str, Sequence[float | None]] = {
        "response_length/mean": [20.0 + step for step in range(steps)],
        "reward/accuracy/mean": [0.5] * steps,
        "tokens/total": [100 * (step + 1) for step in range(steps)],
        "time/total": [2.0] * steps,
    }
    named |= dict(metrics or {})
    lines = [json.dumps({"step": step + 1, **{key: named[key][step] for key in named}}) for step in range(steps)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for step, rows in (rollouts or {}).items():
        pq.write_table(pa.Table.from_pylist(list(rows)), folder / f"rollouts/step-{step:06d}.parquet")
    if tokenizer is not None:
        model = folder / f"checkpoints/step-{steps:06d}/model"
        model.mkdir(parents=True)
        (model / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    return folder


def character_tokenizer(texts: Sequence[str]) -> str:
    """tokenizer.json of one token a character of `texts`, the end 0."""
    from tokenizers import Tokenizer, decoders, models

    words = {"<end>": 0} | {letter: place for place, letter in enumerate(sorted(set("".join(texts))), 1)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.decoder = decoders.Fuse()
    written: str = tokenizer.to_str()
    return written


def write_page(out: Path, *runs: Path, **options: Any) -> Path:
    """The report of these runs, as `luspo compare --html` writes it."""
    histories = read_runs(runs)
    write_report(histories, render_table(compare_runs(histories)), out, **options)
    return out
