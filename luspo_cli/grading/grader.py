"""The one body that judges a response, for the reward of training and for `luspo eval` alike.

    response --extract_answer (the prompt's mark)--> answer --compare--> right, different, or "not ours to say"
                                                                             '--> math-verify in a worker that can be killed

Decided here: our own comparison is bounded and runs first, in this process. Only a pair that it calls different and that
holds commands it does not know (a sum, an integral, a set difference) goes to a worker, as does one that is long
enough to be slow; most batches start no worker at all. Each distinct pair of gold and answer is decided once and
remembered; a worker that ran out of time or crashed makes the answer wrong, is counted, and is not
remembered, since a loaded machine can cause it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from luspo_cli.grading import math_verify
from luspo_cli.grading.answers import AnswerMark, Extraction, extract_answer
from luspo_cli.grading.golds import understood
from luspo_cli.grading.maths.decide import decide, decide_quickly
from luspo_cli.grading.pool import KillablePool
from luspo_cli.grading.tasks import Outcome, TasksUnderWay
from luspo_cli.grading.verdict import NO_ANSWER, DecidedBy, Reason, Verdict
from luspo_cli.machine import usable_cores

TIMEOUT_S = 5.0
"""Seconds for one comparison in a worker."""
MOST_WORKERS = 8
MEMORY_BYTES = 2 << 30
LONGEST_STORED = 2_000
"""Characters of an answer that a verdict keeps; an answer may be a megabyte long."""
_REMEMBERED_PAIRS = 200_000
_LONGEST_REMEMBERED = 2_000
_LONGEST_HERE = 200
"""Characters of gold and answer together whose algebra is fast enough for the calling process."""
_COMPARE = "luspo_cli.grading.worker:compare"
_CAN_READ = "luspo_cli.grading.worker:can_read"


@dataclass(frozen=True, slots=True)
class Response:
    """One response to be judged. `thought_open`: the prompt's chat template opened a thought."""

    text: str
    gold: str
    mark: AnswerMark = AnswerMark.BOX
    thought_open: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """How an answer compares with the gold answer, and who said so."""

    reason: Reason
    decided_by: DecidedBy

    def verdict(self, answer: Extraction) -> Verdict:
        """The verdict on an answer with this decision."""
        text = answer.text if len(answer.text) <= LONGEST_STORED else answer.text[:LONGEST_STORED] + "…"
        return Verdict(text, self.reason.is_right, self.reason, answer.read_from, self.decided_by)


def compare(gold: str, answer: str) -> Decision | None:
    """Compare in this process, bounded in time; None where a worker has to."""
    if not answer.strip():
        return Decision(Reason.DIFFERENT, DecidedBy.COMPARISON)
    if len(gold) + len(answer) > _LONGEST_HERE and decide_quickly(gold, answer) is None:
        return None
    reason = decide(gold, answer)
    if reason is None and math_verify.may_know(gold, answer):
        return None
    return Decision(reason or Reason.DIFFERENT, DecidedBy.COMPARISON)


class Grader:
    """Judges responses; remembers what it decided. Workers start with the first pair that needs one, so close it.

    Example:
        with Grader() as grader:
            grader.judge([Response(r"So it is \\boxed{0.5}.", gold="1/2")])[0].correct  # True
    """

    def __init__(self, *, workers: int = 0, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES) -> None:
        """`workers` 0 is one a core, at most 8; `timeout_s` bounds one comparison, `memory_bytes` one worker."""
        self._workers = workers or min(usable_cores(), MOST_WORKERS)
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._pool: KillablePool | None = None
        self._decisions: OrderedDict[tuple[str, str], Decision] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes; a later call starts new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def judge(self, responses: Sequence[Response]) -> list[Verdict]:
        """Return one verdict a response, in order. Never raises for a response."""
        answers = [_answer_of(one) for one in responses]
        pairs = [(one.gold, answer.text) for one, answer in zip(responses, answers, strict=True) if answer is not None]
        decisions = iter(self.decide(pairs))
        return [NO_ANSWER if answer is None else next(decisions).verdict(answer) for answer in answers]

    def begin(self) -> JudgingUnderWay:
        """Judge responses that come one by one, in workers while something else goes on here."""
        return JudgingUnderWay(self)

    def decide(
        self, pairs: Sequence[tuple[str, str]], *, on_done: Callable[[int, int], None] | None = None
    ) -> list[Decision]:
        """Return one decision a (gold, answer), in order; `on_done` hears (pairs that workers decided, all of those)."""
        found = {pair: self.decide_now(*pair) for pair in dict.fromkeys(pairs)}
        waiting = [pair for pair, decision in found.items() if decision is None]
        if waiting:
            report = None if on_done is None else lambda done: on_done(done, len(waiting))
            outcomes = self._started_pool().map(waiting, on_done=report)
            found |= self._decisions_of(waiting, outcomes)
        return [decision for pair in pairs if (decision := found[pair]) is not None]

    def decide_now(self, gold: str, answer: str) -> Decision | None:
        """Return the decision where it is remembered or needs no worker, else None. Never raises."""
        known = self._decisions.get((gold, answer))
        if known is not None:
            self._decisions.move_to_end((gold, answer))
            return known
        try:
            decision = compare(gold, answer)
        except Exception:
            # One answer must not end the judgement of the others; it is wrong, and counted as crashed.
            return Decision(Reason.CRASHED, DecidedBy.COMPARISON)
        if decision is not None:
            self._remember((gold, answer), decision)
        return decision

    def unreadable(self, golds: Sequence[str]) -> list[bool]:
        """Return for each gold answer whether no response can match it: neither number, words, nor readable mathematics."""
        distinct = list(dict.fromkeys(gold for gold in golds if gold.strip() and not understood(gold)))
        bad: set[str] = set()
        if distinct:
            with self._pool_for(_CAN_READ) as pool:
                outcomes = pool.map([(gold,) for gold in distinct])
            bad = {gold for gold, outcome in zip(distinct, outcomes, strict=True) if not (outcome.ok and outcome.value)}
        return [gold in bad or not gold.strip() for gold in golds]

    def _decisions_of(
        self, pairs: Sequence[tuple[str, str]], outcomes: Sequence[Outcome]
    ) -> dict[tuple[str, str], Decision]:
        """What the workers said of these pairs, remembered where it is theirs to say."""
        found = {pair: _decision(outcome) for pair, outcome in zip(pairs, outcomes, strict=True)}
        for (pair, decision), outcome in zip(found.items(), outcomes, strict=True):
            if outcome.ok:
                self._remember(pair, decision)
        return found

    def _started_pool(self) -> KillablePool:
        if self._pool is None:
            self._pool = self._pool_for(_COMPARE)
        return self._pool

    def _pool_for(self, function: str) -> KillablePool:
        return KillablePool(function, workers=self._workers, timeout_s=self._timeout_s, memory_bytes=self._memory_bytes)

    def _remember(self, pair: tuple[str, str], decision: Decision) -> None:
        if len(pair[0]) + len(pair[1]) > _LONGEST_REMEMBERED:
            return
        self._decisions[pair] = decision
        if len(self._decisions) > _REMEMBERED_PAIRS:
            self._decisions.popitem(last=False)


class JudgingUnderWay:
    """Responses that are judged while others are still to come; to be collected before the grader's next call."""

    def __init__(self, grader: Grader) -> None:
        self._grader = grader
        self._answers: list[tuple[str, Extraction | None]] = []
        self._found: dict[tuple[str, str], Decision | None] = {}
        self._asked: list[tuple[str, str]] = []
        self.tasks: TasksUnderWay | None = None
        """Of the workers, where one was needed."""

    def add(self, response: Response) -> None:
        """Begin with one response: decided here at once, or by a worker meanwhile."""
        answer = _answer_of(response)
        self._answers.append((response.gold, answer))
        if answer is None or (pair := (response.gold, answer.text)) in self._found:
            return
        self._found[pair] = self._grader.decide_now(*pair)
        if self._found[pair] is None:
            self.tasks = self.tasks or self._grader._started_pool().begin()
            self.tasks.add([pair])
            self._asked.append(pair)

    def collect(self) -> list[Verdict]:
        """Wait for the workers; one verdict a response, in the order in which they were added. Never raises for a response."""
        if self.tasks is not None:
            self._found |= self._grader._decisions_of(self._asked, self.tasks.collect())
        verdicts = []
        for gold, answer in self._answers:
            decision = None if answer is None else self._found[gold, answer.text]
            verdicts.append(NO_ANSWER if answer is None or decision is None else decision.verdict(answer))
        return verdicts


def _answer_of(response: Response) -> Extraction | None:
    return extract_answer(response.text, response.mark, thought_open=response.thought_open)


def _decision(outcome: Outcome) -> Decision:
    if outcome.ok:
        return Decision(*outcome.value)
    return Decision(Reason.TIMEOUT if outcome.timed_out else Reason.CRASHED, DecidedBy.MATH_VERIFY)
