"""Size and opening time of the report of a large comparison: 12 runs of 2,000 steps with at least 20,000 stored rollouts.

    python bench/report.py [--runs 12] [--steps 2000] [--tokens 60] [--keep FOLDER]

The run folders are made up: every metric of docs/run-folder.md as a random walk, responses of words at random, the columns of the
update, a tokenizer. The page is opened three times, each in a headless Chromium of its own, until curves, maps and a group of
responses are drawn: seconds since the navigation began, and processor seconds of the page's main thread, which other work on the
machine does not lengthen.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from tokenizers import Tokenizer, decoders, models

from luspo_cli.analysis.comparison import compare_runs
from luspo_cli.analysis.history import read_runs
from luspo_cli.commands.display.comparison import render_table
from luspo_cli.config.layers import resolve_train
from luspo_cli.metrics.names import METRICS
from luspo_cli.report.page import write_report

OBJECTIVES = ("grpo", "gspo", "luspo")
STORED = 50
"""Stored steps of a run."""
PROBLEMS, GROUP = 16, 16
WORDS = 5_000
OPENINGS = 3
CHROMIUM = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1300,900",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--tokens", type=int, default=60, help="mean length of a response")
    parser.add_argument("--keep", type=Path, help="folder for the runs and the page, which stay there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        runs = [make_run(folder, place, given.steps, given.tokens) for place in range(given.runs)]
        page = folder / "report.html"
        started = time.perf_counter()
        histories = read_runs(runs)
        write_report(histories, render_table(compare_runs(histories)), page)
        print(f"runs {given.runs}, steps {given.steps:,}, stored rollouts {given.runs * STORED * PROBLEMS * GROUP:,}")
        print(f"written in {time.perf_counter() - started:.1f} s, {page.stat().st_size / 1e6:.1f} MB")
        for opening in range(OPENINGS):
            wall, processor = open_page(page)
            print(f"opening {opening + 1}: {wall:.2f} s, {processor:.2f} s of the processor")


def make_run(folder: Path, place: int, steps: int, tokens: int) -> Path:
    """Write one run folder; runs of equal seed share their problems."""
    objective, seed = OBJECTIVES[place % len(OBJECTIVES)], place // len(OBJECTIVES)
    generator = np.random.default_rng([seed, place])
    run = folder / f"{objective}-seed{seed}"
    shutil.rmtree(run, ignore_errors=True)
    (run / "rollouts").mkdir(parents=True)
    (run / f"checkpoints/step-{steps:06d}/model").mkdir(parents=True)
    settings = resolve_train(preset="tiny", objective=objective, sets=[f"run.steps={steps}", f"run.seed={seed}"])
    (run / "config.json").write_text(settings.model_dump_json(), encoding="utf-8")
    names = [name for name in METRICS if name not in ("step", "tokens/total")]
    walks = {name: np.abs(generator.normal(0, 0.05, steps).cumsum() + generator.uniform(0.1, 9)) for name in names}
    walks["tokens/total"] = generator.integers(8_000, 12_000, steps).cumsum()
    with (run / "metrics.jsonl").open("w", encoding="utf-8") as stream:
        for step in range(steps):
            row = {name: values[step].item() for name, values in walks.items()}
            stream.write(json.dumps({"step": step + 1, **row}) + "\n")
    words = [f" {word}" for word in make_words()]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(run / f"checkpoints/step-{steps:06d}/model/tokenizer.json"))
    for step in np.linspace(1, steps, STORED).round().astype(int).tolist():
        rows = make_rollouts(generator, words, seed, step, tokens)
        pq.write_table(pa.Table.from_pylist(rows), run / f"rollouts/step-{step:06d}.parquet")
    return run


def make_words() -> list[str]:
    """Words of two to nine letters, the same each time."""
    generator = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    return sorted({"".join(generator.choice(letters, generator.integers(2, 10))) for _ in range(WORDS)})


def make_rollouts(
    generator: np.random.Generator, words: list[str], seed: int, step: int, tokens: int
) -> list[dict[str, Any]]:
    """Rows of one stored step; frequent words are frequent."""
    rows = []
    for problem in range(PROBLEMS):
        for _ in range(GROUP):
            length = int(np.clip(generator.geometric(1 / tokens), 2, 20 * tokens))
            ids = np.minimum(generator.zipf(1.3, length) - 1, len(words) - 1).tolist()
            right = bool(generator.random() < 0.5)
            clipped = float(generator.random() < 0.2)
            rows.append(
                {
                    "problem_id": f"made/{seed}/{step}/{problem}",
                    "prompt": f"Question {problem} of step {step}",
                    "answer": "4",
                    "response": "".join(words[number] for number in ids),
                    "extracted": "4",
                    "status": "correct" if right else "incorrect",
                    "reason": "exact" if right else "different",
                    "read_from": "own_mark",
                    "reward": float(right),
                    "reward_accuracy": float(right),
                    "reward_format": 0.0,
                    "reward_overlong": 0.0,
                    "advantage": float(generator.normal()),
                    "in_batch": True,
                    "response_length": length,
                    "stop_reason": "length" if length == 20 * tokens else "end",
                    "response_tokens": ids,
                    "mini_batch": problem % 4,
                    "sequence_ratio": float(np.exp(generator.normal(0, 2e-3))),
                    "clip_low_fraction": 0.0 if right else clipped,
                    "clip_high_fraction": clipped if right else 0.0,
                    "dual_clip_fraction": 0.0,
                    "loss_weight": 1.0,
                    "token_log_ratios": generator.normal(0, 0.02, length).tolist(),
                }
            )
    return rows


def open_page(page: Path) -> tuple[float, float]:
    """Seconds until the page is drawn, and the main thread's processor seconds, in a browser that was started for it."""
    options = webdriver.ChromeOptions()
    options.binary_location = next(found for name in ("chromium", "google-chrome") if (found := shutil.which(name)))
    with tempfile.TemporaryDirectory() as profile:
        for switch in (*CHROMIUM, f"--user-data-dir={profile}"):
            options.add_argument(switch)
        browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
            browser.get(page.absolute().as_uri())
            while not (opened := browser.execute_script("return document.documentElement.dataset.opened")):
                time.sleep(0.02)
            measured = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
            return int(opened) / 1000, next(one["value"] for one in measured if one["name"] == "TaskDuration")
        finally:
            browser.quit()


if __name__ == "__main__":
    main()
