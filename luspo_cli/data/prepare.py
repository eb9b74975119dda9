"""Sources → train.parquet (+ test.parquet) + manifest.json, in memory that grows with distinct questions and answers only.

Decided here: a row that cannot be used is left out and counted under the first reason that applies, never repaired; a
question that repeats is kept once, and a repeat with another gold answer is counted apart, since one of the two is
wrong; a training question that is also in the test split, or in an excluded benchmark, is left out of training. The
same input, options and seed give the same bytes, manifest included: it holds no time and no absolute path.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luspo_cli import __version__
from luspo_cli.data.overlap import ExcludedQuestions, question_digest
from luspo_cli.data.prompts import build_prompt, prompt_template
from luspo_cli.data.reading import QUESTION_COLUMNS, choose_column, column_names, data_files, read_rows, value_at
from luspo_cli.data.sources import (
    LeftOut,
    Source,
    SourceOptions,
    SourceRow,
    open_source,
    says_train,
    split_of,
)
from luspo_cli.data.values import is_readable_gold, question_text
from luspo_cli.data.writing import MANIFEST, IfExists, SplitWriter, check_output, new_folder, write_manifest
from luspo_cli.errors import UsageError, nearest
from luspo_cli.files import file_sha256

_CHECKED_AT_ONCE = 512
_EVALUATION_SPLITS = {"test": LeftOut.IN_TEST_SPLIT, "validation": LeftOut.IN_VALIDATION_SPLIT}
_PROGRESS_ROWS = 2000

_WHAT_TO_DO = {
    LeftOut.WITH_IMAGES: "prepare-data reads text only so far, so choose a source without images",
    LeftOut.QUESTION_NOT_TEXT: "name the column of the question's text with --question-column",
    LeftOut.ANSWER_NOT_TEXT: "name the column of the final answer, a text or number, with --answer-column",
    LeftOut.UNPARSABLE_ANSWER: "name the column of the final answer with --answer-column; of a worked solution its last"
    r" \boxed{} or what follows #### is taken",
}
"""Most frequent reason -> what to do where no row is left."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was written: the folder, its manifest, and the rows of each split."""

    folder: Path
    manifest: dict[str, Any]
    rows: dict[str, int]


Progress = Callable[[str, int, int], None]
"""Called with the split, the rows read and the rows kept so far."""
FindUnparsable = Callable[[Sequence[str]], Sequence[bool]]
"""Says for each gold answer whether the verifier cannot read it."""


@dataclass(slots=True)
class _Seen:
    """Digests of what was met so far."""

    answers: dict[bytes, bytes] = field(default_factory=dict)
    """Question of a row that was used -> its answer."""
    evaluation: dict[bytes, LeftOut] = field(default_factory=dict)
    """Questions of the test and validation splits, used or not -> why no other split may hold them."""
    unparsable: dict[bytes, bool] = field(default_factory=dict)
    """Answer -> the verifier's opinion."""


@dataclass(slots=True)
class _Counts:
    read: int = 0
    kept: int = 0
    left_out: Counter[LeftOut] = field(default_factory=Counter)
    from_solutions: int = 0
    """Used rows whose gold answer is the last box of a worked solution."""
    system_replaced: int = 0
    """Used rows whose own system turn gave way to the template's."""
    earlier_turns: int = 0
    """Used rows of which only the last turn of a conversation was kept."""

    def as_manifest(self) -> dict[str, Any]:
        return {
            "rows_read": self.read,
            "rows_used": self.kept,
            "rows_read_beyond_limit": self.read - self.kept - self.left_out.total(),
            "left_out": {reason.value: self.left_out[reason] for reason in LeftOut},
            "golds_from_solutions": self.from_solutions,
            "system_turns_replaced": self.system_replaced,
            "earlier_turns_dropped": self.earlier_turns,
        }


@dataclass(frozen=True, slots=True)
class _Filter:
    """The rules of one preparation, applied to one split at a time."""

    prompt: str | None
    longest_prompt: int
    excluded: ExcludedQuestions
    unparsable: FindUnparsable | None
    progress: Progress | None

    def usable(self, source: Source, split: str, counts: _Counts, seen: _Seen) -> Iterator[SourceRow]:
        """Yield the rows that can be used, counting the others; reads ahead by one block of answers."""
        block: list[SourceRow] = []
        for row in source.splits[split]():
            counts.read += 1
            if self.progress is not None and counts.read % _PROGRESS_ROWS == 0:
                self.progress(split, counts.read, counts.kept)
            reason = self._unfit(row, source)
            if reason is not None:
                counts.left_out[reason] += 1
                continue
            block.append(row)
            if self.unparsable is None or len(block) >= _CHECKED_AT_ONCE:
                yield from self._new(block, split, counts, seen)
                block = []
        yield from self._new(block, split, counts, seen)

    def _unfit(self, row: SourceRow, source: Source) -> LeftOut | None:
        """Why a row cannot be used, as far as the row alone tells."""
        if row.unfit is not None:
            return row.unfit
        if not row.question:
            return LeftOut.EMPTY_QUESTION
        if not row.answer:
            return LeftOut.EMPTY_ANSWER
        if not (_is_unicode(row.question) and _is_unicode(row.answer)):
            return LeftOut.UNREADABLE_TEXT
        prompt = build_prompt(self.prompt or source.prompt, row.question, system=row.system)
        if sum(len(message.content) for message in prompt) > self.longest_prompt:
            return LeftOut.OVERLONG
        return None if is_readable_gold(row.answer) else LeftOut.UNPARSABLE_ANSWER

    def _new(self, block: list[SourceRow], split: str, counts: _Counts, seen: _Seen) -> Iterator[SourceRow]:
        """Yield the rows of a block that the verifier can read and that repeat nothing."""
        answers = {_digest(row.answer or ""): row.answer or "" for row in block}
        unknown = {digest: text for digest, text in answers.items() if digest not in seen.unparsable}
        if self.unparsable is not None and unknown:
            seen.unparsable.update(zip(unknown, self.unparsable([*unknown.values()]), strict=True))
        for row in block:
            reason = self._repeated(row, split, seen)
            if reason is None:
                yield row
            else:
                counts.left_out[reason] += 1

    def _repeated(self, row: SourceRow, split: str, seen: _Seen) -> LeftOut | None:
        """Why a row that fits cannot be used; one without a reason counts as used from here on."""
        question, answer = question_digest(row.question), _digest(row.answer or "")
        own = _EVALUATION_SPLITS.get(split_of(split))
        elsewhere = seen.evaluation.setdefault(question, own) if own else seen.evaluation.get(question)
        if seen.unparsable.get(answer):
            return LeftOut.UNPARSABLE_ANSWER
        if elsewhere is not None and elsewhere is not own:
            return elsewhere
        if question in seen.answers:
            return LeftOut.DUPLICATE if seen.answers[question] == answer else LeftOut.CONFLICTING_ANSWER
        if split != "test" and row.question in self.excluded:
            return LeftOut.IN_EXCLUDED_BENCHMARK
        seen.answers[question] = answer
        return None


def prepare(
    sources: Sequence[str],
    out: Path,
    *,
    options: SourceOptions | None = None,
    prompt: str | None = None,
    splits: Sequence[str] = (),
    held_out: int = 0,
    exclude: Sequence[Path] = (),
    limit: int | None = None,
    seed: int = 0,
    if_exists: IfExists = "refuse",
    max_prompt_characters: int = 10_000,
    unparsable: FindUnparsable | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Write the problems of `sources`, one after the other, into the new folder `out` and return what was written.

    `splits` (none: all that the sources have) are read by name; `held_out` training rows, drawn by `seed`, become the
    test split of sources without one; `limit` is the most training rows kept, in source order; `unparsable` is the
    verifier's opinion on gold answers.

    Raises:
        UsageError: a wrong source, column, option or file, or no usable row; nothing is written.
        RunError: the hub or the disk failed; nothing half-written is left.
    """
    _check_request(sources, held_out, limit, prompt, options)
    check_output(out, if_exists)
    opened = [open_source(name, options or SourceOptions(seed=seed)) for name in sources]
    names = _split_names(opened, splits)
    if held_out and "test" in names:
        raise UsageError(
            "A held-out slice was asked for, but the source has a test split: add --split train to ignore it."
        )
    if held_out and "train" not in names:
        raise UsageError(
            f"--held-out takes rows of the train split, and only {', '.join(names)} is read; add --split train or leave it out."
        )
    excluded_files, excluded = _read_excluded(exclude)
    rules = _Filter(prompt, max_prompt_characters, excluded, unparsable, progress)
    counts = {split: _Counts() for split in names}
    seen = _Seen()
    with new_folder(out, if_exists) as folder:
        # Test first, then validation: what comes later must not repeat them.
        for split in sorted(names, key=lambda name: ("test", "validation", "train").index(split_of(name))):
            most = None if limit is None or split != "train" else limit + held_out
            with SplitWriter(folder / f"{split}.parquet", split) as writer:
                for source in opened:
                    if split in source.splits:
                        _write_split(source, split, rules, counts[split], seen, writer, most)
            if counts[split].kept == 0:
                raise UsageError(_nothing_usable(split, counts[split], sources))
            if progress is not None:
                progress(split, counts[split].read, counts[split].kept)
        rows = {split: counts[split].kept for split in names}
        if held_out:
            rows = _hold_out(folder, held_out, rows["train"], seed)
        manifest = {
            "luspo_version": __version__,
            "sources": [_source_entry(source) for source in opened],
            "prompt": {source.name: prompt or source.prompt for source in opened},
            "seed": seed,
            "limit": limit,
            "held_out": held_out,
            "max_prompt_characters": max_prompt_characters,
            "golds_checked_by_verifier": unparsable is not None,
            "excluded": {"files": excluded_files, "questions": len(excluded)},
            "splits": {split: counts[split].as_manifest() for split in names},
            "outputs": {
                f"{split}.parquet": {"rows": count, "sha256": file_sha256(folder / f"{split}.parquet")}
                for split, count in rows.items()
            },
        }
        write_manifest(folder, manifest)
    return Prepared(out, manifest, rows)


def _check_request(
    sources: Sequence[str], held_out: int, limit: int | None, prompt: str | None, options: SourceOptions | None
) -> None:
    if not sources:
        raise UsageError("Name at least one source to prepare.")
    if len(sources) > 1 and options is not None and options.from_path is not None:
        raise UsageError("--from goes with one source: prepare the sources one by one, or give their paths as sources.")
    if held_out < 0 or (limit is not None and limit < 1):
        raise UsageError("--held-out must be 0 or more and --limit 1 or more.")
    if prompt is not None:
        prompt_template(prompt)


def _split_names(opened: Sequence[Source], wanted: Sequence[str]) -> list[str]:
    there = list(dict.fromkeys(split for source in opened for split in source.splits))
    for split in wanted:
        if split not in there:
            raise UsageError(f"The source has no split '{split}'{nearest(split, there)}; it has {', '.join(there)}.")
    return list(dict.fromkeys(wanted)) or there


def _write_split(
    source: Source,
    split: str,
    rules: _Filter,
    counts: _Counts,
    seen: _Seen,
    writer: SplitWriter,
    most: int | None,
) -> None:
    if most is not None and counts.kept >= most:
        return
    template = prompt_template(rules.prompt or source.prompt)
    for row in rules.usable(source, split, counts, seen):
        assert row.answer is not None
        prompt = build_prompt(template.name, row.question, system=row.system)
        counts.from_solutions += row.from_solution
        counts.system_replaced += bool(row.system and template.system)
        counts.earlier_turns += row.earlier_turns
        writer.add(source.data_source, prompt, row.answer, row.number, row.question)
        counts.kept += 1
        if counts.kept == most:
            return


def _hold_out(folder: Path, held_out: int, usable: int, seed: int) -> dict[str, int]:
    """Split train.parquet in two by a seeded draw and return the rows of both; reads it row group by row group."""
    if held_out >= usable:
        raise UsageError(
            f"{held_out} rows cannot be held out of {usable} usable ones; nothing would be left to train on."
        )
    drawn = frozenset(random.Random(f"luspo held-out {seed}").sample(range(usable), held_out))
    whole = folder / "whole.parquet"
    (folder / "train.parquet").rename(whole)
    with ExitStack() as stack:
        train = stack.enter_context(SplitWriter(folder / "train.parquet", "train"))
        test = stack.enter_context(SplitWriter(folder / "test.parquet", "test"))
        for number, row in enumerate(read_rows(whole)):
            (test if number in drawn else train).copy(row)
    whole.unlink()
    return {"train": train.rows, "test": test.rows}


def _read_excluded(paths: Sequence[Path]) -> tuple[list[dict[str, Any]], ExcludedQuestions]:
    """Return what was read, for the manifest, and the questions; a folder's training files are not excluded."""
    entries: list[dict[str, Any]] = []
    questions: list[str] = []
    for path in paths:
        if path.is_dir():
            files = [file for file in data_files(path) if not says_train(file.stem)]
        elif path.is_file():
            files = [path]
        else:
            raise UsageError(f"There is no file or folder {path} to exclude.")
        found = 0
        for file in files:
            texts = _excluded_questions(file, required=path.is_file())
            questions.extend(texts)
            found += len(texts)
            entries.append({"name": file.name, "sha256": file_sha256(file), "questions": len(texts)})
        if found == 0:
            raise UsageError(f"{path} holds no question to exclude; give a benchmark's file or folder.")
    return entries, ExcludedQuestions(questions)


def _excluded_questions(file: Path, *, required: bool) -> list[str]:
    try:
        names = column_names(file)
        column = choose_column(names, None, QUESTION_COLUMNS, option="another file", place=str(file))
    except UsageError:
        if required:
            raise
        return []  # a benchmark's folder holds other files too; the manifest shows 0 questions for this one
    rows: Iterable[Any] = read_rows(file, [column.partition(".")[0]])
    return [text for row in rows if (text := question_text(value_at(row, column)))]


def _nothing_usable(split: str, counts: _Counts, sources: Sequence[str]) -> str:
    where = f"the {split} split of {', '.join(sources)}"
    if counts.read == 0:
        return f"There are no rows in {where}."
    reasons = ", ".join(f"{count} {reason.value.replace('_', ' ')}" for reason, count in counts.left_out.most_common())
    said = f"None of the {counts.read} rows in {where} can be used ({reasons}); nothing was written"
    most = max(counts.left_out, key=lambda reason: counts.left_out[reason])
    return f"{said}: {_WHAT_TO_DO[most]}." if most in _WHAT_TO_DO else f"{said}."


def _source_entry(source: Source) -> dict[str, Any]:
    return {
        "name": source.name,
        "data_source": source.data_source,
        "revision": source.revision,
        "files": [{"name": file.name, "sha256": file_sha256(file)} for file in source.files],
    }


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()


__all__ = ["MANIFEST", "FindUnparsable", "LeftOut", "Prepared", "Progress", "prepare"]
