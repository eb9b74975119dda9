"""Stored responses of one step as a log that Inspect's viewer opens (https://inspect.aisi.org.uk, JSON, log version 2).

A sample is a problem with one of its responses; Inspect calls the place of a response among those of its problem an epoch.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from luspo_cli.analysis.history import RunHistory
from luspo_cli.config.reward import LENGTH_TERMS
from luspo_cli.errors import UsageError
from luspo_cli.files import replace_file
from luspo_cli.runs.stored_rollouts import read_columns, stored_steps

LOG_VERSION = 2
PROMPT = ("problem_id", "prompt", "answer", "response")
"""Columns that every stored step has and that become a sample's own fields; the others are its metadata."""
SCORED = ("extracted", "status", "reward", "stop_reason", "response_length")
DETAILS = (
    "reason",
    "read_from",
    "reward_accuracy",
    "reward_format",
    "reward_overlong",
    *(f"reward_{name}" for name in LENGTH_TERMS),
    "advantage",
    "in_batch",
    "mini_batch",
    "sequence_ratio",
    "clip_low_fraction",
    "clip_high_fraction",
    "loss_weight",
)


def write_inspect_log(run: RunHistory, out: Path, step: int | None = None) -> int:
    """Write the responses of `step`, else of the last stored one, and return which step that was.

    UsageError where the run stores no such rollouts.
    """
    stored = stored_steps(run.path)
    if not stored:
        raise UsageError(f"{run.path} stores no rollouts; train with run.rollouts_every above 0.")
    chosen = max(stored) if step is None else step
    if chosen not in stored:
        raise UsageError(f"{run.path} stores no rollouts of step {chosen}; there are: {', '.join(map(str, stored))}.")
    rows = read_columns(stored[chosen], (*PROMPT, *SCORED, *DETAILS)).to_pylist()
    if not rows:
        raise UsageError(f"{stored[chosen]} holds no responses; choose another step.")
    written = datetime.fromtimestamp(stored[chosen].stat().st_mtime, UTC).isoformat(timespec="seconds")
    text = json.dumps(inspect_log(run, chosen, rows, written), ensure_ascii=False, allow_nan=False)
    replace_file(out, text.encode(), "or name another file")
    return chosen


def inspect_log(run: RunHistory, step: int, rows: Sequence[Mapping[str, Any]], created: str) -> dict[str, Any]:
    """The log's content; `rows`: stored rollouts of the step, `created`: when they were, in ISO 8601."""
    model = str(run.config.get("model", {}).get("path", "policy"))
    responses = Counter(row["problem_id"] for row in rows)
    seen: Counter[str] = Counter()
    samples = []
    for row in rows:
        seen[row["problem_id"]] += 1
        samples.append(_sample(row, seen[row["problem_id"]], model))
    name = f"{run.name} step {step}"
    identity = hashlib.sha256(f"{run.path} {step}".encode()).hexdigest()[:22]
    results = {
        "total_samples": len(rows),
        "completed_samples": len(rows),
        "scores": [
            _result("correct", "accuracy", [float(row["status"] == "correct") for row in rows]),
            _result("reward", "mean", [float(row["reward"]) for row in rows]),
        ],
    }
    return {
        "version": LOG_VERSION,
        "status": "success",
        "eval": {
            "eval_id": identity,
            "run_id": identity,
            "task_id": identity,
            "created": created,
            "task": name,
            "dataset": {
                "name": str(run.config.get("data", {}).get("train", "")),
                "samples": len(responses),
                "sample_ids": list(responses),
            },
            "model": model,
            "config": {"epochs": max(responses.values())},
            "metadata": {"objective": run.objective, "seed": run.seed, "step": step},
        },
        "plan": {"name": "luspo", "steps": []},
        "results": results,
        "stats": {"started_at": created, "completed_at": created},
        "samples": samples,
    }


def _sample(row: Mapping[str, Any], epoch: int, model: str) -> dict[str, Any]:
    answer = {"role": "assistant", "content": row["response"], "source": "generate", "model": model}
    details = {name: _plain(row[name]) for name in (*DETAILS, "response_length") if name in row}
    cut = row["stop_reason"] == "length"
    return {
        "id": row["problem_id"],
        "epoch": epoch,
        "input": row["prompt"],
        "target": row["answer"],
        "messages": [{"role": "user", "content": row["prompt"], "source": "input"}, answer],
        "output": {
            "model": model,
            "choices": [{"message": answer, "stop_reason": "max_tokens" if cut else "stop"}],
            "completion": row["response"],
        },
        "scores": {
            "correct": {
                "value": "C" if row["status"] == "correct" else "I",
                "answer": row["extracted"],
                "explanation": f"{row['status']}: {row['reason']}" if "reason" in row else row["status"],
            },
            "reward": {"value": _plain(row["reward"])},
        },
        "metadata": details,
    }


def _result(score: str, metric: str, values: Sequence[float]) -> dict[str, Any]:
    return {"name": score, "scorer": score, "metrics": {metric: {"name": metric, "value": statistics.fmean(values)}}}


def _plain(value: Any) -> Any:
    """A number that JSON has no word for as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
