"""Every kind of fault, how it is provoked, and what counts as having survived it.

A run survives a fault when it ends with the same bytes as one that nothing disturbed, or when it refuses in one sentence with
exit status 1 or 2, leaves what is there as it is, and goes on to those bytes once the cause is mended. Anything else is a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import damage_faults
import disk_faults
import input_faults
import kill_faults
import process_faults
from small_training import Attempt, Workshop


@dataclass(frozen=True, slots=True)
class Effort:
    """How often faults at random moments are tried, and which moments."""

    kills: int = 50
    tries: int = 6
    seed: int = 0
    processes: int = 1
    """Trainings at a time within one kind."""


class Kind(NamedTuple):
    """A kind of fault and what the run must do."""

    name: str
    expected: str
    provoke: Callable[[Workshop, Effort], Iterator[Attempt]]


CATALOGUE = (
    Kind(
        "SIGKILL at a random moment",
        "resumes to the same bytes",
        lambda w, e: kill_faults.kills_at_random_moments(w, e.kills, e.seed, e.processes),
    ),
    Kind(
        "SIGKILL inside a write",
        "resumes to the same bytes",
        lambda w, e: kill_faults.kills_at_chosen_moments(w),
    ),
    Kind("SIGKILL while resuming", "resumes to the same bytes", lambda w, e: kill_faults.kills_while_resuming(w)),
    Kind("SIGKILL while replacing a run", "the same command works", lambda w, e: kill_faults.kill_while_replacing(w)),
    Kind(
        "SIGKILL while the starting model is made",
        "the same command works",
        lambda w, e: kill_faults.kills_while_the_model_is_made(w),
    ),
    Kind("full disk (small file system)", "one sentence, then resumes", lambda w, e: disk_faults.full_disk(w)),
    Kind(
        "full disk from a random write on",
        "one sentence, then resumes",
        lambda w, e: disk_faults.full_disk_at_any_write(w, e.tries, e.seed),
    ),
    Kind(
        "disk turns read-only at a random write",
        "one sentence, then resumes",
        lambda w, e: disk_faults.read_only_at_any_write(w, e.tries, e.seed),
    ),
    Kind(
        "one write fails (EIO)",
        "one sentence, then resumes",
        lambda w, e: disk_faults.one_broken_write(w, e.tries, e.seed),
    ),
    Kind("limit on file sizes", "one sentence, then resumes", lambda w, e: disk_faults.file_size_limit(w)),
    Kind(
        "tracking writer without disk",
        "it is dropped, the run goes on",
        lambda w, e: disk_faults.tracker_without_disk(w),
    ),
    Kind("read-only file system", "refused", lambda w, e: disk_faults.read_only_folder(w)),
    Kind("folder without permission", "refused", lambda w, e: disk_faults.folder_without_permission(w)),
    Kind(
        "flipped bit in a checkpoint",
        "the one before is taken, which is said",
        lambda w, e: damage_faults.flipped_bits(w, e.seed),
    ),
    Kind("no whole checkpoint", "refused", lambda w, e: damage_faults.no_whole_checkpoint(w, e.seed)),
    Kind("torn last line", "resumes to the same bytes", lambda w, e: damage_faults.torn_lines(w)),
    Kind("lost record", "refused", lambda w, e: damage_faults.lost_record(w)),
    Kind(
        "config.json edited by hand",
        "refused unless --allow-changed",
        lambda w, e: damage_faults.edited_configuration(w),
    ),
    Kind("other settings with --resume", "refused", lambda w, e: damage_faults.other_settings_at_resume(w)),
    Kind("folder of another version", "resumes, or refused", lambda w, e: damage_faults.older_version(w)),
    Kind("provenance.json torn", "refused", lambda w, e: damage_faults.unreadable_provenance(w)),
    Kind("data or model changed", "refused unless --allow-changed", lambda w, e: input_faults.changed_inputs(w)),
    Kind("model that would run code", "refused, nothing runs", lambda w, e: input_faults.hostile_model(w)),
    Kind("pickle in a checkpoint", "never read", lambda w, e: input_faults.hostile_checkpoint(w)),
    Kind("image outside the data folder", "refused", lambda w, e: input_faults.images_out_of_bounds(w)),
    Kind("NaN, overflow, divergence", "stops with a diagnosis", lambda w, e: input_faults.poisoned_weights(w)),
    Kind("reward worker killed", "the same verdicts", lambda w, e: input_faults.dying_reward_workers(w, e.seed)),
    Kind(
        "SIGINT, SIGTERM, SIGHUP",
        "step and checkpoint, status 128 + signal",
        lambda w, e: process_faults.stopping_signals(w),
    ),
    Kind("SIGTERM, then SIGKILL", "resumes to the same bytes", lambda w, e: process_faults.kill_after_stop_request(w)),
    Kind("reader of the output gone", "goes on", lambda w, e: process_faults.reader_gone(w)),
    Kind("no output streams", "goes on", lambda w, e: process_faults.closed_streams(w)),
    Kind("terminal closed", "stops as by SIGTERM; under nohup goes on", lambda w, e: process_faults.terminal_gone(w)),
    Kind("second process on the run", "refused, the first goes on", lambda w, e: process_faults.second_process(w)),
    Kind(
        "run folder moved or deleted",
        "stops, writes nowhere else",
        lambda w, e: process_faults.folder_moved(w),
    ),
    Kind("clock runs backwards", "goes on, no negative time", lambda w, e: process_faults.clock_backwards(w)),
)
