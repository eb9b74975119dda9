"""SIGKILL: at random moments, at chosen ones inside every kind of write, and while the starting model is made."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

from small_training import STEPS, Attempt, Ended, Fault, Operation, Workshop, recorded

KILLS_IN_A_ROW = 5
"""Of one run, before it may finish: resuming must survive being killed as well."""
CHECKPOINT = r"checkpoints/\.step-000004\.partial"


def kills_at_random_moments(
    workshop: Workshop, kills: int, seed: int, processes: int, in_a_row: int = KILLS_IN_A_ROW
) -> Iterator[Attempt]:
    """Half of the moments by the clock, half at a file operation (half of those in the middle of it, where it writes)."""
    assert workshop.whole
    done = 0
    with ThreadPoolExecutor(processes) as pool:
        for first in count(0, processes):
            chains = [random.Random(f"{seed} {first + i}") for i in range(processes)]
            for attempts in pool.map(lambda draw: _chain(workshop, draw, in_a_row), chains):
                yield from attempts[: kills - done]
                done = min(kills, done + len(attempts))
            if done >= kills:
                return


def _chain(workshop: Workshop, draw: random.Random, kills: int) -> list[Attempt]:
    """Start a run, kill it again and again, let it finish; every kill is lost where the end is not the undisturbed one."""
    run = workshop.new_run("random")
    moments: list[str] = []
    problem = ""
    while len(moments) < kills and not problem:
        left = 1 - recorded(run) / (STEPS + 1)
        if draw.random() < 0.5 and workshop.operations:
            number = workshop.draw_operation(draw, left)
            fault = Fault(run, draw.choice(["kill", "torn"]), number)
            ended = workshop.resume(run, fault=fault)
            moment = f"{fault.how} at {ended.operations[-1] if ended.operations else 'no operation'}"
        else:
            seconds = draw.uniform(0.1, 1.0) * workshop.whole_seconds
            ended = workshop.resume(run, kill_after=seconds)
            moment = f"after {seconds:.2f} s"
        if ended.status != -9:
            problem = ended.unlike(0)
            break
        moments.append(moment.replace(str(run), "RUN"))
    problem = problem or workshop.finished_alike(run)
    return [Attempt(moment, problem) for moment in moments]


def chosen_moments(workshop: Workshop) -> list[tuple[str, str, Operation]]:
    """Name, way and place of each moment that random kills may miss."""
    at = workshop.operation
    return [
        ("after the folder is made", "after", at("mkdir", "")),
        ("config.json half written", "torn", at("write", r"\.config\.json\.partial")),
        ("config.json not yet renamed", "kill", at("rename", r"config\.json")),
        ("between config.json and provenance.json", "after", at("rename", r"config\.json")),
        ("provenance.json half written", "torn", at("write", r"\.provenance\.json\.partial")),
        ("evaluation before step 1 not yet recorded", "kill", at("open", r"evals/\.held-out\.jsonl\.partial")),
        ("evaluation of step 4 recorded, its step not", "after", at("rename", r"evals/held-out\.jsonl", 3)),
        ("rollouts half written", "torn", at("write", r"rollouts/\.step-000002\.parquet\.partial", -1)),
        ("rollouts not yet renamed", "kill", at("rename", r"rollouts/step-000004\.parquet")),
        ("metrics line half written", "torn", at("write", r"metrics\.jsonl", 3)),
        ("metrics line written, not on disk", "kill", at("fsync", r"metrics\.jsonl", 4)),
        ("first checkpoint begun", "after", at("mkdir", r"checkpoints/\.step-000002\.partial/trainer")),
        ("weights half written", "torn", at("write", CHECKPOINT + r"/model/\.tmp.*", -1)),
        ("between two files of a checkpoint", "kill", at("open", CHECKPOINT + r"/model/tokenizer\.json")),
        ("optimizer half written", "torn", at("write", CHECKPOINT + r"/trainer/\.tmp.*", -1)),
        ("manifest half written", "torn", at("write", CHECKPOINT + r"/\.checkpoint\.json\.partial")),
        ("after the manifest", "after", at("rename", CHECKPOINT + r"/checkpoint\.json")),
        ("files on their way to the disk", "kill", at("fsync", CHECKPOINT + ".*", -1)),
        ("before the checkpoint's rename", "kill", at("rename", r"checkpoints/step-000004")),
        ("after the checkpoint's rename", "after", at("rename", r"checkpoints/step-000004")),
        ("old checkpoint about to go", "kill", at("unlinkat", r"checkpoints/step-000002.*")),
        ("old checkpoint half gone", "after", at("unlinkat", r"checkpoints/step-000002.*", 3)),
        ("last checkpoint not yet renamed", "kill", at("rename", r"checkpoints/step-000006")),
    ]


def kills_at_chosen_moments(workshop: Workshop, names: Collection[str] = ()) -> Iterator[Attempt]:
    """Each moment in a run of its own; `names`: of these alone."""
    for name, how, operation in chosen_moments(workshop):
        if not names or name in names:
            run = workshop.new_run("chosen")
            ended = workshop.start(run, fault=Fault(run, how, operation.number))
            yield Attempt(name, _not_killed(ended) or workshop.finished_alike(run))


def kills_while_resuming(workshop: Workshop) -> Iterator[Attempt]:
    """A run that was killed already, killed again while it is cut back to its checkpoint."""
    for name, how, kind, path in (
        ("metrics.jsonl half cut back", "torn", "write", r"\.metrics\.jsonl\.partial"),
        ("metrics.jsonl cut back, rollouts not", "after", "rename", r"metrics\.jsonl"),
        ("first line after the checkpoint half written", "torn", "write", r"metrics\.jsonl"),
    ):
        run = workshop.copy_of_stopped("resuming")
        ended = workshop.resume(run, fault=Fault(run, how, workshop.operation(kind, path, resumed=True).number))
        where = f" at {ended.operations[-1].name} {Path(ended.operations[-1].path).name}" if ended.operations else ""
        yield Attempt(name + where, _not_killed(ended) or workshop.finished_alike(run))


def kill_while_replacing(workshop: Workshop) -> Iterator[Attempt]:
    """`--if-exists replace`, killed when half of the old run is gone: the same command must work again."""
    run = workshop.copy_of_stopped("replaced")
    fault = Fault(run, "kill", 12)
    ended = workshop.start(run, "--if-exists", "replace", fault=fault)
    again = workshop.start(run, "--if-exists", "replace")
    yield Attempt("old run half deleted", _not_killed(ended) or again.unlike(0) or workshop.differences(run))


def kills_while_the_model_is_made(workshop: Workshop) -> Iterator[Attempt]:
    """The cache of made models: a half-written model must never be taken for one."""
    assert workshop.whole
    operations: tuple[str, ...] = ()
    for name, how, wanted in (
        ("in the warm-up", "after", "open .lock"),
        ("model half written", "torn", "write .tmp"),
        ("model not yet renamed", "kill", "rename"),
    ):
        cache = workshop.new_run("own-cache")
        cache.mkdir()
        own = {"LUSPO_CACHE": str(cache)}
        if not operations:
            run = workshop.new_run("made")
            ended = workshop.start(run, "--set", "run.steps=1", fault=Fault(cache), environment=own)
            operations = tuple(f"{one.name} {one.path}" for one in ended.operations)
            cache = workshop.new_run("own-cache")
            cache.mkdir()
            own = {"LUSPO_CACHE": str(cache)}
        kind, _, place = wanted.partition(" ")
        number = next(i for i, one in enumerate(operations, 1) if one.startswith(kind) and place in one)
        run = workshop.new_run("made")
        ended = workshop.start(run, fault=Fault(cache, how, number), environment=own)
        again = workshop.start(run, environment=own)
        yield Attempt(name, _not_killed(ended) or again.unlike(0) or workshop.differences(run))


def _not_killed(ended: Ended) -> str:
    return "" if ended.status == -9 else f"was not killed (status {ended.status}): {ended.said[-300:]}"
