"""What a run reads from others: data and weights that changed under it, files that would run code, images out of bounds."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from small_training import Attempt, Ended, Workshop, records
from tiny_model import make_configuration, make_model, make_problems

STEP = 3
KILLED_WORKERS = 2
"""Of a run: where three end in a row before they are ready, the run stops and says so."""


class FileRuns:
    """Runs from a model folder and a data file of their own, in a folder of their own."""

    def __init__(self, workshop: Workshop, name: str, *, poison: str = "") -> None:
        self.workshop = workshop
        self.folder = workshop.new_run(name)
        self.folder.mkdir()
        self.model, self.data = self.folder / "model", self.folder / "data" / "train.parquet"
        self.run = self.folder / "run"
        make_model(self.model, poison=poison)
        make_problems(self.data)
        make_configuration(self.folder / "own.toml", self.model, self.data)

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("train", "--config", str(self.folder / "own.toml"))

    def start(self, *arguments: str, run: Path | None = None) -> Ended:
        return self.workshop.luspo(*self.arguments, "--run", str(run or self.run), *arguments)

    def stop(self) -> None:
        """Begin a run and kill it after step 3, with a checkpoint of step 2."""
        with self.workshop.watched(*self.arguments, run=self.run, step=STEP):
            pass


def changed_inputs(workshop: Workshop) -> Iterator[Attempt]:
    """Data or starting model changed since the run began: refused with both fingerprints, unless told otherwise."""
    runs = FileRuns(workshop, "files")
    whole = runs.folder / "whole"
    first = runs.start(run=whole).unlike(0)
    runs.stop()
    for what, file in (("data", runs.data), ("starting model", runs.model / "model.safetensors")):
        original = file.read_bytes()
        if what == "data":
            make_problems(file, problems=9)
        else:
            make_model(runs.folder / "other")
            content = bytearray(original)
            content[-1] ^= 1
            file.write_bytes(content)
        kept = (runs.run / "metrics.jsonl").read_bytes()
        ended = workshop.resume(runs.run)
        problem = first or ended.unlike(2, "changed since the run began", str(file.name), "sha256", "--allow-changed")
        problem = problem or ("" if (runs.run / "metrics.jsonl").read_bytes() == kept else "metrics.jsonl was touched")
        yield Attempt(what, problem)
        copy = runs.folder / f"allowed-{what.replace(' ', '-')}"
        shutil.copytree(runs.run, copy)
        allowed = workshop.resume(copy, "--allow-changed")
        (entry,) = json.loads((copy / "provenance.json").read_text()).get("resumed") or [{}]
        told = [change for change in entry.get("changed", []) if file.name in change["what"]]
        unrecorded = "" if told and told[0]["was"] != told[0]["now"] else "not recorded in provenance.json"
        yield Attempt(f"{what}, with --allow-changed", allowed.unlike(0, "going on all the same") or unrecorded)
        file.write_bytes(original)
    ended = workshop.resume(runs.run)
    yield Attempt("put back", ended.unlike(0) or workshop.differences(runs.run, whole=whole))


def dying_reward_workers(workshop: Workshop, seed: int) -> Iterator[Attempt]:
    """Reward workers killed as the kernel does when memory is short: the verdicts, and so the run, stay the same."""
    runs = FileRuns(workshop, "rewarded")
    whole = runs.folder / "whole"
    first = runs.start(run=whole).unlike(0)
    draw = random.Random(f"{seed} workers")
    for number in range(4):
        run = runs.folder / f"run-{number}"
        process = workshop.process(*runs.arguments, "--run", str(run))
        killed: set[int] = set()
        while process.poll() is None:
            for worker in _workers(process.pid) - killed:
                if len(killed) < KILLED_WORKERS:
                    time.sleep(draw.uniform(0.0, 0.5))
                    if worker in _workers(process.pid):
                        os.kill(worker, signal.SIGKILL)
                        killed.add(worker)
            time.sleep(0.02)
        _, said = process.communicate()
        problem = first or Ended(process.returncode, said).unlike(0) or workshop.differences(run, whole=whole)
        if not problem and not killed:
            problem = "no worker was there to be killed"
        yield Attempt(f"{len(killed)} workers killed in a run", problem)


def _workers(parent: int) -> set[int]:
    """Reward workers that are children of a process."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                own_parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if own_parent == parent and b"grading.pool_worker" in (entry / "cmdline").read_bytes():
                    found.add(int(entry.name))
            except (OSError, ValueError, IndexError):
                continue
    return found


class Marked:
    """Creates a file when it is unpickled: what a hostile file would do."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.mark),)


def hostile_model(workshop: Workshop) -> Iterator[Attempt]:
    """Model folders that would run code: pickled weights, and Python of their own. Neither runs."""
    runs = FileRuns(workshop, "hostile")
    mark = runs.folder / "it-ran"
    weights = runs.model / "model.safetensors"
    kept = weights.read_bytes()
    weights.unlink()
    for name in ("pytorch_model.bin", "model.pt"):
        (runs.model / name).write_bytes(pickle.dumps(Marked(mark)))
        ended = runs.start()
        ran = "the code ran" if mark.exists() else ""
        yield Attempt(f"weights in {name} only", ran or ended.unlike(2, name, "safetensors") or _left(runs.run))
        (runs.model / name).unlink()
    weights.write_bytes(kept)

    configuration = json.loads((runs.model / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (runs.model / "config.json").write_text(json.dumps(configuration | {"auto_map": own, "model_type": "own"}))
    (runs.model / "own.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    ended = runs.start()
    ran = "the code ran" if mark.exists() else ""
    yield Attempt("Python beside the weights", ran or ended.unlike(2, "trust_remote_code") or _left(runs.run))


def hostile_checkpoint(workshop: Workshop) -> Iterator[Attempt]:
    """A pickle put into a checkpoint beside the tensors: it is not among the files that are read."""
    run = workshop.copy_of_stopped("pickled")
    mark = run.parent / "it-ran"
    for name in ("model/pytorch_model.bin", "trainer/optimizer.pt", "trainer/optimizer.bin"):
        (run / "checkpoints/step-000004" / name).write_bytes(pickle.dumps(Marked(mark)))
    problem = workshop.finished_alike(run, ignore=[f"checkpoints/step-000004/{name}" for name in _PUT])
    yield Attempt("beside the tensors", "the code ran" if mark.exists() else problem)


_PUT = ("model/pytorch_model.bin", "trainer/optimizer.pt", "trainer/optimizer.bin")


def images_out_of_bounds(workshop: Workshop) -> Iterator[Attempt]:
    """Image paths that leave the data folder: refused before anything is read from them."""
    runs = FileRuns(workshop, "images")
    secret = runs.folder / "secret.png"
    secret.write_bytes(b"not for you")
    (runs.data.parent / "link.png").symlink_to(secret)
    (runs.data.parent / "loop.png").symlink_to("loop.png")
    for name, path, sentence in (
        ("absolute", str(secret), "leaves the data folder"),
        ("dots", "../secret.png", "leaves the data folder"),
        ("link", "link.png", "leaves the data folder"),
        ("loop of links", "loop.png", "row 0"),
        ("NUL character", "a\0b.png", "row 0"),
        ("missing", "missing.png", "missing"),
    ):
        make_problems(runs.data, images=path)
        yield Attempt(name, runs.start().unlike(2, sentence) or _left(runs.run))


def poisoned_weights(workshop: Workshop) -> Iterator[Attempt]:
    """NaN in a starting weight; weights whose gradient overflows; a learning rate beyond reason: a diagnosis, not a crash."""
    for poison, sentence in (("nan", "not finite"), ("inf", "gradient norm was not finite")):
        runs = FileRuns(workshop, poison, poison=poison)
        ended = runs.start()
        yield Attempt(f"{poison} from the start", ended.unlike(1, sentence) or _whole_record(runs.run))
    runs = FileRuns(workshop, "diverged")
    ended = runs.start("--set", "update.learning_rate=1e12", "--set", "update.gradient_clip=0")
    status = "" if ended.status in (0, 1) else f"exit status {ended.status}"
    yield Attempt("learning rate 1e12", status or ended.unlike(ended.status) or _whole_record(runs.run))


def _whole_record(run: Path) -> str:
    """Whatever was recorded is JSON without NaN, one line a step."""
    if not (run / "metrics.jsonl").exists():
        return ""
    text = (run / "metrics.jsonl").read_text()
    steps = [record["step"] for record in records(run)]
    return "metrics.jsonl holds NaN" if "NaN" in text or steps != list(range(1, len(steps) + 1)) else ""


def _left(run: Path) -> str:
    return "a run folder was left" if run.exists() else ""
