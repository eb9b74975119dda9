"""While verl trains: its output, line by line, and its log, step by step, become the run folder's.

What verl prints goes into a file and is read from there, so that nothing is lost with this process. The log is JSON lines, of
which the last may be half-written. A step's record waits for its dumped rollouts, which verl writes a little later.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luspo_cli.config.run import TrainRun
from luspo_cli.runs.folder import RunFolder
from luspo_cli.training.verl.dumped import DumpedRollouts
from luspo_cli.training.verl.translation import Before, Translator

logger = logging.getLogger(__name__)
DUMP_WAIT_S = 120.0
"""How long a step's record waits for its rollouts."""
SHOWN_LINES = 25
"""Of verl's last error."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_RAY_PREFIX = re.compile(r"^\([\w.:<>]+ pid=\d+(?:, ip=[\d.]+)?\) ?")


class GrowingFile:
    """The whole lines that a file has got since it was last asked."""

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path, self._place, self._rest = path, start, b""

    def lines(self) -> list[str]:
        """New lines without their ends; none while there is no file."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._place)
                new = stream.read()
        except OSError:
            return []
        self._place += len(new)
        *whole, self._rest = (self._rest + new).split(b"\n")
        return [line.decode("utf-8", "replace") for line in whole]


class Watch:
    """Call `look` again and again while verl runs, and once with `ended` after it."""

    def __init__(
        self,
        config: TrainRun,
        folder: RunFolder,
        log: Path,
        translator: Translator,
        dumped: DumpedRollouts | None,
        report: Callable[[dict[str, Any]], None],
        before: Before,
    ) -> None:
        self._config, self._folder, self._log = config, folder, GrowingFile(log)
        self._translator, self._dumped, self._report, self._before = translator, dumped, report, before
        self._waiting: list[tuple[int, dict[str, Any], float]] = []
        """Rows whose rollouts are not there yet, and since when."""

    def look(self, *, ended: bool = False) -> None:
        """Take what is new in verl's log into the run folder; `ended`: nothing more will come."""
        for line in self._log.lines():
            self._take(line)
        while self._waiting:
            step, row, since = self._waiting[0]
            rows = self._dumped.rows(step) if self._dumped else None
            late = ended or time.monotonic() - since > DUMP_WAIT_S
            if self._dumped and rows is None and not late:
                return
            self._waiting.pop(0)
            self._record(step, row, rows)

    def _take(self, line: str) -> None:
        try:
            written = json.loads(line)
            step, row = int(written["step"]), dict(written["data"])
        except (ValueError, KeyError, TypeError):
            logger.warning(f"a line of verl's log cannot be read and was left out: {line[:80]}")
            return
        if self._translator.is_step(row):
            self._waiting.append((step, row, time.monotonic()))
        elif (found := self._translator.evaluation(row)) and step not in self._folder.evaluated_steps():
            self._folder.append_evaluation(step, found)

    def _record(self, step: int, row: dict[str, Any], rows: list[Any] | None) -> None:
        if step <= self._folder.last_step():
            return  # computed again by a resumed run whose record is here already
        graded = None
        if self._dumped and rows is not None:
            groups = self._dumped.groups(rows)
            graded = self._dumped.metrics(groups)
            every = self._config.run.rollouts_every
            if step == 1 or step % every == 0:
                self._dumped.store(self._folder.rollouts, step, groups)
        record, self._before = self._translator.record(step, row, self._before, graded)
        self._folder.append_metrics(record)
        evaluation = {key: value for key, value in record.items() if key.startswith("evaluation/")}
        if evaluation:
            self._folder.append_evaluation(step, evaluation)
        self._report(record)


def bare(line: str) -> str:
    """A line that verl printed, without colours and without what Ray puts before it."""
    return _RAY_PREFIX.sub("", _COLOUR.sub("", line).rstrip("\r"))


def last_error(output: list[str]) -> tuple[list[str], str]:
    """The last lines of verl's last traceback, at most a screen, and the line that says what was wrong."""
    lines = [bare(line) for line in output]
    starts = [
        place for place, line in enumerate(lines) if line.lstrip().startswith("Traceback (most recent call last)")
    ]
    if not starts:
        shown = [line for line in lines if line.strip()][-SHOWN_LINES:]
        return shown, shown[-1].strip() if shown else ""
    block, cause = [], ""
    for line in lines[starts[-1] :]:
        block.append(line)
        if line.strip() and not line.startswith((" ", "\t", "Traceback")):
            cause = line.strip()
            if re.match(r"[\w.]+(?:Error|Exception|Interrupt|Exit)\b", cause):
                break
    return block[-SHOWN_LINES:], cause
