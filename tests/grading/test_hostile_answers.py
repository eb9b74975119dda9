"""No pair of answers, however built, costs the comparison more than a bounded time and memory, or raises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_DECIDE_ALL = r"""
import resource
import sys

sys.path.insert(0, sys.argv[1])
from hostile import hostile_answers
from luspo_cli.grading.maths.decide import decide

resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))
answers = hostile_answers()
golds = ["25", r"\frac12", "(3,4]", "x=5", r"\text{east}", "3,5,7", r"(0,36)\setminus\{9\}", "x>2", "2:3"]
golds += answers
for gold in golds:
    for answer in answers:
        decide(gold, answer)
print(len(golds) * len(answers))
"""
_LONGEST_S = 300
"""All pairs together take half a minute; a pair that hangs is killed with the process."""


def test_all_pairs_of_hostile_answers_are_decided_within_a_gibibyte_and_the_time_limit() -> None:
    command = [sys.executable, "-c", _DECIDE_ALL, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 3_500
