"""Provoke every fault and print how often it was tried, survived and lost.

python tests/reliability/fault_table.py                     all of it: about ten minutes on two cores
python tests/reliability/fault_table.py --kills 10 --only SIGKILL
python tests/reliability/fault_table.py --write             and put its rows into docs/reliability.md
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests/doubles
from fault_catalogue import CATALOGUE, Effort, Kind
from small_training import ROOT, Attempt, Unavailable, Workshop

DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- fault table: begin -->", "<!-- fault table: end -->"
Row = tuple[Kind, list[Attempt], str]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Provoke every fault and print how often it was survived.")
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs at random moments")
    parser.add_argument("--tries", type=int, default=6, help="random moments of every disk fault")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--processes", type=int, default=2, help="kinds of fault at a time")
    parser.add_argument("--only", nargs="*", default=[], help="kinds whose name contains one of these")
    parser.add_argument("--keep", type=Path, help="a folder for the runs, kept afterwards")
    parser.add_argument("--write", action="store_true", help=f"put the rows into {DOCUMENT.relative_to(ROOT)}")
    chosen = parser.parse_args(words)
    effort = Effort(chosen.kills, chosen.tries, chosen.seed)
    folder = chosen.keep or Path(tempfile.mkdtemp(prefix="luspo-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        workshop = Workshop(folder)
        assert workshop.stopped  # and with it what all kinds share, before they begin side by side
        assert workshop.whole
        with ThreadPoolExecutor(chosen.processes) as pool:
            rows = list(pool.map(lambda kind: _provoke(kind, workshop, effort), _chosen(chosen.only)))
    finally:
        if not chosen.keep:
            shutil.rmtree(folder, ignore_errors=True)
    shown = table(rows)
    minutes = (time.monotonic() - began) / 60
    print(shown)
    print(f"\n{minutes:.1f} minutes")
    for kind, attempts, _ in rows:
        for attempt in attempts:
            if attempt.problem:
                print(f"\nlost: {kind.name}: {attempt.moment}: {attempt.problem}")
    if chosen.write:
        DOCUMENT.write_text(renewed(DOCUMENT.read_text(), rows))
    return int(any(attempt.problem for _, attempts, _ in rows for attempt in attempts))


def _chosen(words: Sequence[str]) -> list[Kind]:
    return [kind for kind in CATALOGUE if not words or any(word in kind.name for word in words)]


def _provoke(kind: Kind, workshop: Workshop, effort: Effort) -> Row:
    began = time.monotonic()
    attempts: list[Attempt] = []
    skipped = ""
    try:
        for attempt in kind.provoke(workshop, effort):
            attempts.append(attempt)
            print(f"{kind.name}: {attempt.moment}: {attempt.problem or 'survived'}", file=sys.stderr, flush=True)
    except Unavailable as reason:
        skipped = str(reason)
        print(f"{kind.name}: not tried: {skipped}", file=sys.stderr, flush=True)
    except Exception as error:  # a defect of the harness must not cost the rest of the table
        attempts.append(Attempt("the harness", f"{type(error).__name__}: {error}"))
        print(f"{kind.name}: {attempts[-1].problem}", file=sys.stderr, flush=True)
    print(f"{kind.name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return kind, attempts, skipped


def table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown, with their sums."""
    return _with_head([_line(row) for row in rows])


def renewed(document: str, rows: Sequence[Row]) -> str:
    """`document` with these rows in its table; rows of kinds that were not provoked now stay as they are."""
    before, _, rest = document.partition(BEGIN)
    old, _, after = rest.partition(END)
    lines = {line.split("|")[1].strip(): line for line in old.splitlines() if line.startswith("| ")}
    lines |= {row[0].name: _line(row) for row in rows}
    shown = _with_head([lines[kind.name] for kind in CATALOGUE if kind.name in lines])
    return f"{before}{BEGIN}\n{shown}\n{END}{after}"


def _line(row: Row) -> str:
    kind, attempts, skipped = row
    lost = sum(bool(attempt.problem) for attempt in attempts)
    tried = f"not here: {skipped}" if skipped else len(attempts)
    return f"| {kind.name} | {kind.expected} | {tried} | {len(attempts) - lost} | {lost} |"


def _with_head(lines: Sequence[str]) -> str:
    survived, lost = (sum(int(line.split("|")[place]) for line in lines) for place in (4, 5))
    head = ["| fault | must | tried | survived | lost |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*head, *lines, f"| all | | {survived + lost} | {survived} | {lost} |"])


if __name__ == "__main__":
    sys.exit(main())
