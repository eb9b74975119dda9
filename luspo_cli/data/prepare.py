"""Sources → train.parquet (+ test.parquet) + images + manifest.json.

Memory grows by some bytes for each distinct question, answer and image. The same input, options and seed give the same bytes,
manifest included: it holds no time and no absolute path.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luspo_cli import __version__
from luspo_cli.data.columns import SourceOptions
from luspo_cli.data.excluded import read_excluded
from luspo_cli.data.filtering import Counts, Filter, FindUnparsable, PassRates, Progress, Seen
from luspo_cli.data.image_store import ImageStore
from luspo_cli.data.left_out import LeftOut
from luspo_cli.data.prompts import build_prompt, prompt_template
from luspo_cli.data.reading import read_rows
from luspo_cli.data.sources import Source, open_source, split_of
from luspo_cli.data.writing import IfExists, Layout, SplitWriter, StoredAs, check_output, new_folder, write_manifest
from luspo_cli.errors import UsageError, nearest
from luspo_cli.files import file_sha256

_PLACES = "its path is looked for beside the data file, in an images.zip there, and where --images-from says"
_WHAT_TO_DO = {
    LeftOut.QUESTION_NOT_TEXT: "name the column of the question's text with --question-column",
    LeftOut.ANSWER_NOT_TEXT: "name the column of the final answer, a text or number, with --answer-column",
    LeftOut.UNPARSABLE_ANSWER: "name the column of the final answer with --answer-column; of a worked solution its last"
    r" \boxed{} or what follows #### is taken",
    LeftOut.PASS_RATE_MISSING: "name the column with --pass-rate-column",
    LeftOut.PASS_RATE_OUTSIDE: "pass rates are compared as the column has them; see --min-pass-rate and --max-pass-rate",
    LeftOut.IMAGE_COLUMNS_UNCLEAR: "name the column of the images with --image-column",
    LeftOut.IMAGE_MISSING: _PLACES,
    LeftOut.IMAGE_OUTSIDE: _PLACES,
    LeftOut.IMAGE_MARKS_DIFFER: "a text has one <image> mark for each of its images, or none",
}
"""Most frequent reason -> what to do where no row is left."""
_CATEGORIES_NAMED = 12
"""In an error message."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was written: the folder, its manifest, and the rows of each split."""

    folder: Path
    manifest: dict[str, Any]
    rows: dict[str, int]


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
    images: StoredAs = "relative",
    pass_rates: PassRates | None = None,
    categories: Sequence[str] = (),
) -> Prepared:
    """Write the problems of `sources`, one after the other, into the new folder `out` and return what was written.

    `splits` (none: all that the sources have) are read by name; `held_out` training rows, drawn by `seed`, become the
    test split of sources without one; `limit` is the most training rows kept, in source order; `unparsable` is the
    verifier's opinion on gold answers; `images` says how the rows name their images; `pass_rates` holds for training rows;
    only rows of the `categories` are used (none: all).

    Raises:
        UsageError: a wrong source, column, option or file, or no usable row; nothing is written.
        RunError: the hub or the disk failed; nothing half-written is left.
    """
    options, pass_rates = options or SourceOptions(seed=seed), pass_rates or PassRates()
    _check_request(sources, held_out, limit, prompt, options, pass_rates)
    check_output(out, if_exists)
    opened = [open_source(name, options) for name in sources]
    names = _split_names(opened, splits)
    if held_out and "test" in names:
        raise UsageError(
            "A held-out slice was asked for, but the source has a test split: add --split train to ignore it."
        )
    if held_out and "train" not in names:
        raise UsageError(
            f"--held-out takes rows of the train split, and only {', '.join(names)} is read; add --split train or leave it out."
        )
    counts = {split: Counts() for split in names}
    seen = Seen()
    layout = Layout(images, {name: kind for source in opened for name, kind in source.facts.items()})
    with new_folder(out, if_exists) as folder:
        store = ImageStore(folder, out, images)
        excluded_files, excluded = read_excluded(exclude, store)
        rules = Filter(
            prompt, max_prompt_characters, pass_rates, frozenset(categories), excluded, store, unparsable, progress
        )
        # Test first, then validation: what comes later must not repeat them.
        for split in sorted(names, key=lambda name: ("test", "validation", "train").index(split_of(name))):
            most = None if limit is None or split != "train" else limit + held_out
            with SplitWriter(folder / f"{split}.parquet", split, layout) as writer:
                for source in opened:
                    if split in source.splits:
                        _write_split(source, split, rules, counts[split], seen, writer, most)
            if counts[split].kept == 0:
                unread = [name for source in opened for name in source.unread_images]
                raise UsageError(_nothing_usable(split, counts[split], sources, seen.categories, unread))
            if progress is not None:
                progress(split, counts[split].read, counts[split].kept)
        met = seen.categories
        if limit is None and (absent := next((name for name in categories if name not in met), None)) is not None:
            raise UsageError(f"No row has the category '{absent}'{nearest(absent, met)}: {_listed(met)}.")
        rows = {split: counts[split].kept for split in names}
        if held_out:
            rows = _hold_out(folder, held_out, rows["train"], seed, layout)
        stored = store.finish()
        manifest = {
            "luspo_version": __version__,
            "sources": [_source_entry(source) for source in opened],
            "prompt": {source.name: prompt or source.prompt for source in opened},
            "seed": seed,
            "limit": limit,
            "held_out": held_out,
            "max_prompt_characters": max_prompt_characters,
            "pass_rates": asdict(pass_rates),
            "categories": sorted(categories),
            "images": {"stored_as": images, **asdict(stored), "resized": 0},
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
    sources: Sequence[str],
    held_out: int,
    limit: int | None,
    prompt: str | None,
    options: SourceOptions,
    pass_rates: PassRates,
) -> None:
    if not sources:
        raise UsageError("Name at least one source to prepare.")
    if len(sources) > 1 and options.from_path is not None:
        raise UsageError("--from goes with one source: prepare the sources one by one, or give their paths as sources.")
    if held_out < 0 or (limit is not None and limit < 1):
        raise UsageError("--held-out must be 0 or more and --limit 1 or more.")
    lowest, highest = pass_rates.lowest, pass_rates.highest
    if not all(math.isfinite(bound) for bound in (lowest, highest) if bound is not None):
        raise UsageError("--min-pass-rate and --max-pass-rate must be numbers; leave out the one that bounds nothing.")
    if lowest is not None and highest is not None and lowest > highest:
        raise UsageError(f"--min-pass-rate {lowest:g} is above --max-pass-rate {highest:g}; exchange them.")
    for option, bound in (("--min-pass-rate", lowest), ("--max-pass-rate", highest)):
        if bound is not None and not 0 <= bound <= 1:
            raise UsageError(f"{option} {bound:g} is no share of solved attempts; give it between 0 and 1.")
    if prompt is not None:
        prompt_template(prompt)


def _split_names(opened: Sequence[Source], wanted: Sequence[str]) -> list[str]:
    there = list(dict.fromkeys(split for source in opened for split in source.splits))
    for split in wanted:
        if split not in there:
            raise UsageError(f"The source has no split '{split}'{nearest(split, there)}; it has {', '.join(there)}.")
    return list(dict.fromkeys(wanted)) or there


def _write_split(
    source: Source, split: str, rules: Filter, counts: Counts, seen: Seen, writer: SplitWriter, most: int | None
) -> None:
    if most is not None and counts.kept >= most:
        return
    template = prompt_template(rules.prompt or source.prompt)
    for row in rules.usable(source, split, counts, seen):
        assert row.answer is not None
        prompt = build_prompt(template.name, row.question, images=len(row.kept_images), system=row.system)
        counts.from_solutions += row.from_solution
        counts.system_replaced += bool(row.system and template.system)
        counts.earlier_turns += row.earlier_turns
        extra = {"source_row": row.number, "question": row.question, **row.facts}
        writer.add(source.data_source, prompt, row.answer, extra, rules.images.column(row.kept_images))
        counts.kept += 1
        if counts.kept == most:
            return


def _hold_out(folder: Path, held_out: int, usable: int, seed: int, layout: Layout) -> dict[str, int]:
    """Split train.parquet in two by a seeded draw and return the rows of both; reads it row group by row group."""
    if held_out >= usable:
        raise UsageError(
            f"{held_out} rows cannot be held out of {usable} usable ones; nothing would be left to train on."
        )
    drawn = frozenset(random.Random(f"luspo held-out {seed}").sample(range(usable), held_out))
    whole = folder / "whole.parquet"
    (folder / "train.parquet").rename(whole)
    with ExitStack() as stack:
        train = stack.enter_context(SplitWriter(folder / "train.parquet", "train", layout))
        test = stack.enter_context(SplitWriter(folder / "test.parquet", "test", layout))
        for number, row in enumerate(read_rows(whole)):
            (test if number in drawn else train).copy(row)
    whole.unlink()
    return {"train": train.rows, "test": test.rows}


def _listed(categories: set[str]) -> str:
    named = sorted(categories)[:_CATEGORIES_NAMED]
    return (
        f"the categories there are {', '.join(named)}{', ...' * (len(named) < len(categories))}"
        if named
        else "none is named"
    )


def _nothing_usable(
    split: str, counts: Counts, sources: Sequence[str], categories: set[str], unread: Sequence[str]
) -> str:
    where = f"the {split} split of {', '.join(sources)}"
    if counts.read == 0:
        return f"There are no rows in {where}."
    reasons = ", ".join(f"{count} {reason.value.replace('_', ' ')}" for reason, count in counts.left_out.most_common())
    said = f"None of the {counts.read} rows in {where} can be used ({reasons}); nothing was written"
    most = max(counts.left_out, key=lambda reason: counts.left_out[reason])
    if most is LeftOut.IMAGE_MARKS_DIFFER and unread:
        return f"{said}: the column '{unread[0]}' looks like images; name it with --image-column {unread[0]}."
    said += f"; first {most.value.replace('_', ' ')}, in {counts.examples[most]}" if most in counts.examples else ""
    if most is LeftOut.OTHER_CATEGORY:
        return f"{said}: {_listed(categories)}."
    return f"{said}: {_WHAT_TO_DO[most]}." if most in _WHAT_TO_DO else f"{said}."


def _source_entry(source: Source) -> dict[str, Any]:
    return {
        "name": source.name,
        "data_source": source.data_source,
        "revision": source.revision,
        "licence": source.licence,
        "unread_images": ", ".join(source.unread_images) or None,
        "pass_rate_column": source.pass_rate_column,
        "read_beside_archive": [*source.stands_for],
        "image_files": source.image_files,
        "files": [{"name": file.name, "sha256": file_sha256(file)} for file in source.files],
    }
