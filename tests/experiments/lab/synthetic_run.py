"""A run folder whose numbers follow the lab's own law: what a fit must find in it is known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from luspo_cli.config.lab import LabRun
from luspo_cli.experiments.lab.experiment import Learner, advantage_table, draw, group_advantages
from luspo_cli.experiments.lab.responses import DTYPE, ResponseModel, Responses


class Recorder(Learner):
    """Keeps each column's log-ratio when it was trained on, of the last step: [B, T] for each mini-batch."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.log_ratios: list[Tensor] = []

    def _step(
        self, own: Responses, advantages: Tensor, old: Tensor, reference: Tensor | None, noise: Tensor | None
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            self.log_ratios.append((self.model.log_probs(self.logits, own, noise) - old)[0])
        return super()._step(own, advantages, old, reference, noise)


def write_run(folder: Path, config: LabRun, *, stored: tuple[int, ...] = (1, 2, 3), columns: bool = True) -> Path:
    """One seed of `config` as a run folder; rollouts of the steps in `stored`, with the update's columns or without."""
    (folder / "rollouts").mkdir(parents=True)
    content = config.model_dump(mode="json")
    content["update"].pop("optimizer")
    content["run"] |= {"seed": config.run.seed}
    (folder / "config.json").write_text(json.dumps(content))
    generators = [torch.Generator().manual_seed(1000 + config.run.seed)]
    model = ResponseModel(config)
    learner = Recorder(model, model.start(generators))
    table, lines = advantage_table(config), []
    for step in range(1, config.run.steps + 1):
        before = learner.logits.detached()
        responses = draw(model, before, generators)
        advantages = group_advantages(responses.right, table)
        learner.log_ratios = []
        found = {key: float(value) for key, value in learner.update(responses, advantages, generators).items()}
        lines.append(
            {
                "step": step,
                "response_length/mean": float(responses.lengths.mean()),
                "reward/accuracy/mean": float(responses.right.to(DTYPE).mean()),
                "policy/kl_old": found["kl_old"],
                "objective/clip_low_fraction": found["clip_low"],
                "objective/clip_high_fraction": found["clip_high"],
                "update/grad_norm": found["gradient_norm"],
            }
        )
        if step in stored:
            rows = _rows(config, responses, model.log_probs(before, responses)[0], learner.log_ratios, columns=columns)
            pq.write_table(pa.Table.from_pylist(rows), folder / "rollouts" / f"step-{step:06d}.parquet")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _rows(
    config: LabRun, responses: Responses, logprobs: Tensor, log_ratios: list[Tensor], *, columns: bool
) -> list[dict[str, Any]]:
    size = len(responses.types[0]) // len(log_ratios)
    counts = responses.token_counts[0].long()
    rows = []
    for row, right in enumerate(responses.right[0].tolist()):
        mask = responses.mask[0, row]
        times = counts[row][mask]
        ratios = log_ratios[row // size][row % size][mask].repeat_interleave(times).tolist()
        cut = not bool(mask[-1])
        filler = int(responses.fillers[0, row].sum())
        text = "." * min(filler, len(ratios)) + ("" if cut else "1" if right else "0")
        line = {
            "problem_id": f"p{row // config.rollout.group_size}",
            "response": text,
            "extracted": None if cut else text[-1],
            "reward_accuracy": float(right),
            "response_length": len(ratios),
            "stop_reason": "length" if cut else "end",
            "response_tokens": [0] * len(ratios),
            "rollout_logprobs": logprobs[row][mask].repeat_interleave(times).tolist(),
        }
        if columns:
            line |= {
                "mini_batch": row // size,
                "sequence_ratio": math.exp(sum(ratios) / len(ratios)),
                "token_log_ratios": ratios,
            }
        rows.append(line)
    return rows
