"""Peak memory of the held-out evaluation with images, by the number of problems; each row in a process of its own.

    python bench/held_out_memory.py [NUMBER ...]        # 100 and 1000 problems where left out

Every problem has a photograph-like JPEG of its own, 336 x 252 pixels: 108 image tokens, 1.9 MiB of pixels as the vision tower
reads them. The model is a small one of the class Qwen2.5-VL with random weights. Once all is loaded and two problems were
evaluated, the peak is set back; what the whole slice takes beyond that baseline is the row's number. Linux only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from made_images import SMALL, make_model, make_problems
from shared.child import reset_peak, resident_gib, resident_peak_gib

from luspo_cli.config.layers import resolve_train
from luspo_cli.config.run import TrainRun

WIDTH, HEIGHT = 336, 252
PATCH_BYTES = 1176 * 4
CASES = {"tower trained": "false", "tower frozen": "true"}


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        measure(**json.loads(sys.argv[2]))
        return
    numbers = [int(number) for number in sys.argv[1:]] or [100, 1000]
    columns = ("problems", "all pixels", "baseline", "peak", "over it", "seconds")
    print(f"{'':<16}" + "".join(f"{column:>12}" for column in columns) + "   (MiB)", flush=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_model(folder / "model", SMALL)
        make_problems(folder / "data", max(numbers), WIDTH, HEIGHT)
        for name, frozen in CASES.items():
            for number in numbers:
                task = json.dumps({"place": place, "number": number, "frozen": frozen})
                done = subprocess.run([sys.executable, __file__, "--one", task], check=True, stdout=subprocess.PIPE)
                found = json.loads(done.stdout.splitlines()[-1])
                pixels = number * (WIDTH // 14) * (HEIGHT // 14) * PATCH_BYTES / 2**20
                sizes = f"{pixels:>12,.0f}{found['baseline']:>12,.0f}{found['peak']:>12,.0f}"
                over = found["peak"] - found["baseline"]
                print(f"{name:<16}{number:>12,}{sizes}{over:>12,.0f}{found['seconds']:>12.0f}", flush=True)


def measure(place: str, number: int, frozen: str) -> None:
    """Evaluate so many problems and print the resident sizes in MiB as JSON."""
    from luspo_cli.policy.loading import load_model
    from luspo_cli.processes.ranks import ALONE
    from luspo_cli.rewards.rubric import Rubric
    from luspo_cli.runs.folder import RunFolder
    from luspo_cli.training.problems import problems_of
    from luspo_cli.training.stages import make_stages

    config = configuration(Path(place), number, frozen)
    loaded = load_model(config.model, {}, config.data)
    problems = problems_of(config, loaded)
    with Rubric(config.reward, config.rollout.max_response_tokens) as rubric:
        stages = make_stages(config, loaded, problems, rubric, RunFolder(Path(place) / "run"), None, None, ALONE)
        held_out = stages.held_out
        assert held_out is not None
        every, held_out.problems = held_out.problems, held_out.problems[:2]
        held_out.evaluate(stages.sampler)
        held_out.problems = every
        reset_peak()
        baseline, began = 1024 * resident_gib(), time.monotonic()
        assert held_out.evaluate(stages.sampler)[0]["evaluation/problems"] == number
        found = {"baseline": baseline, "peak": 1024 * resident_peak_gib(), "seconds": time.monotonic() - began}
    print(json.dumps(found))


def configuration(folder: Path, number: int, frozen: str) -> TrainRun:
    sets = [
        f"model.path={folder / 'model'}", f"model.freeze_vision={frozen}", f"data.train={folder / 'data'}",
        f"data.held_out={folder / 'data'}", "data.max_prompt_tokens=256", "rollout.problems=2", "rollout.group_size=4",
        "rollout.max_rows=64", "rollout.max_response_tokens=16", "update.mini_batches=1", "reward.verifier=exact",
        f"evaluation.problems={number}", "evaluation.samples=4", "rollout.sampler=in-process", "run.threads=1",
    ]  # fmt: skip
    return resolve_train(preset="qwen2.5-0.5b", objective="luspo", sets=sets)


if __name__ == "__main__":
    main()
