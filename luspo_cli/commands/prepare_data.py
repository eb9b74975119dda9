"""`luspo prepare-data`: questions with gold answers from anywhere, as parquet in verl's layout with a manifest.

Progress goes to standard error, a live line on a terminal and plain lines in a pipe; standard output has the summary
or, with --json, the manifest alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

if TYPE_CHECKING:
    from luspo_cli.data.prepare import Prepared

PREPARE_DATA_EXAMPLES = [
    "luspo prepare-data arithmetic --out data/arithmetic --held-out 200",
    "luspo prepare-data gsm8k --from grade-school-math/data --out data/gsm8k",
    "luspo prepare-data dapo-math-17k --out data/dapo --exclude benchmarks/aime24 --exclude benchmarks/aime25",
    "luspo prepare-data my.jsonl --question-column task --answer-column result --held-out 100 --out data/mine",
    "luspo prepare-data virl39k --max-pass-rate 0.9 --held-out 500 --out data/virl39k",
    "luspo prepare-data charts.jsonl --images-from charts.zip --image-column figure --images bytes --out data/charts",
    "luspo prepare-data owner/name --revision 1a2b3c4 --prompt boxed-suffix --out data/name",
]
VIRL39K = """**virl39k**

TIGER-Lab/ViRL39K of the Hugging Face hub: 38,870 questions with pictures and short answers, a download of about 3 GB.
Without `--from` it is fetched; with it, PATH is a folder with `39Krelease.parquet` and `images.zip` (or the unpacked folder
`images`).

Columns: `question` with `<image>` marks, `answer` in a box, `image` (paths in the archive), `qid`, `category`, `source`,
`PassRate_32BTrained` of every row, `PassRate_7BBase` of about half of them: a bound on it leaves the others out, counted.

Licence: MIT, says https://huggingface.co/datasets/TIGER-Lab/ViRL39K; it was put together from other data sets, whose terms
hold for what came from them. Read the page yourself before you use or pass on the data or what you train with it.

Then: `luspo train --preset qwen2.5-vl-7b-lora --dry-run` (one GPU) or `--preset qwen2.5-vl-7b` (several).

"""
_NOTES = {
    "golds_from_solutions": r"have the gold answer in a \boxed{}, the last one of a worked solution or alone",
    "system_turns_replaced": "have a system turn of their own, and the prompt template's stands in its place; a --prompt without "
    "a system turn (boxed-suffix, gsm8k-verl, dapo, plain) keeps it",
    "earlier_turns_dropped": "are conversations, of which only the last question is kept",
    "words_of_excluded_with_other_pictures": "have the words of an excluded question and other pictures, compared by pixels: one "
    "that was scaled or encoded anew with losses counts as another",
}
"""Count of a split's manifest entry -> what it says of used rows."""


class ImagesChoice(StrEnum):
    """How the rows of the parquet name their images."""

    RELATIVE = "relative"
    ABSOLUTE = "absolute"
    BYTES = "bytes"


class IfExistsChoice(StrEnum):
    """What happens where --out holds prepared data already."""

    REFUSE = "refuse"
    REPLACE = "replace"


def prepare_data_cli(
    sources: Annotated[
        list[str],
        Argument(
            metavar="SOURCE...",
            help="gsm8k (MIT), dapo-math-17k (Apache-2.0), arithmetic (made), a local .jsonl/.json/.csv/.tsv/.parquet/.arrow "
            "file or folder, or a hub data set owner/name[:config]. "
            "With images: virl39k (see below), geo3k (hiyouga/geometry3k, 3,002 questions; MIT), "
            "easy-vqa (the Python package, 48,248 questions; MIT).",
        ),
    ],
    out: Annotated[Path, Option("--out", "-o", help="The folder to write.")],
    from_path: Annotated[
        Path | None,
        Option(
            "--from",
            help="File, folder or archive with a named source's upstream files (virl39k: 39Krelease.parquet, and beside it "
            "images.zip or the folder images; easy-vqa: its wheel or folder); left out: the hub, or the installed package.",
        ),
    ] = None,
    question_column: Annotated[
        str | None, Option(help="Column of the question; dots look into nested columns.")
    ] = None,
    answer_column: Annotated[
        str | None, Option(help="Column of the gold answer; dots look into nested columns.")
    ] = None,
    image_column: Annotated[
        list[str] | None,
        Option(help="Column of the images, repeatable; left out: those that are called like images."),
    ] = None,
    images_from: Annotated[
        list[Path] | None,
        Option(
            help="Folder or archive (.zip, .tar, .tar.gz) with the images that rows name by path, repeatable; the data file's "
            "own folder and an images.zip in it are looked into first.",
        ),
    ] = None,
    images: Annotated[
        ImagesChoice,
        Option(
            help="How the parquet holds images: relative paths (of files in OUT/images), absolute paths, or the bytes.",
        ),
    ] = ImagesChoice.RELATIVE,
    min_pass_rate: Annotated[
        float | None, Option(help="Leave out training rows that a model solves less often.")
    ] = None,
    max_pass_rate: Annotated[
        float | None, Option(help="Leave out training rows that a model solves more often.")
    ] = None,
    pass_rate_column: Annotated[
        str | None,
        Option(
            help="Column of the pass rate; left out: PassRate_7BBase (of virl39k), pass_rate or PassRate_32BTrained.",
        ),
    ] = None,
    category: Annotated[
        list[str] | None,
        Option(help="Keep only rows of this category, repeatable; easy-vqa: colour, shape, yes or no."),
    ] = None,
    prompt: Annotated[
        str | None, Option(help="qwen-boxed, boxed-suffix, gsm8k-verl, dapo or plain; left out: the source's own.")
    ] = None,
    split: Annotated[list[str] | None, Option(help="Split to read, repeatable; left out: all there are.")] = None,
    held_out: Annotated[int, Option(help="Training rows to draw as the test split of a source without one.")] = 0,
    exclude: Annotated[
        list[Path] | None,
        Option(
            help="Benchmark file or folder whose questions (words and pictures) training must not hold; repeatable."
        ),
    ] = None,
    limit: Annotated[int | None, Option(help="Keep at most so many training rows.")] = None,
    size: Annotated[int, Option(help="Problems to make (arithmetic).")] = 2000,
    seed: Annotated[int, Option(help="Seed of made problems and of the held-out draw.")] = 0,
    revision: Annotated[str | None, Option(help="Commit, tag or branch of a hub data set.")] = None,
    max_prompt_characters: Annotated[int, Option(help="Leave longer prompts out.")] = 10_000,
    check_answers: Annotated[
        bool, Option("--check-answers/--no-check-answers", help="Leave out gold answers that the verifier cannot read.")
    ] = True,
    if_exists: Annotated[
        IfExistsChoice, Option(help="Where --out holds prepared data already.")
    ] = IfExistsChoice.REFUSE,
    as_json: Annotated[bool, Option("--json", help="Print the manifest, for programs.")] = False,
) -> None:
    """Write problems as train.parquet (and test.parquet) in verl's layout, with a manifest of what was left out."""
    from luspo_cli.data.columns import SourceOptions
    from luspo_cli.data.filtering import PassRates
    from luspo_cli.data.prepare import prepare
    from luspo_cli.grading.grader import Grader

    with Grader() as grader, _progress() as progress:
        prepared = prepare(
            sources,
            out,
            options=SourceOptions(
                from_path,
                question_column,
                answer_column,
                revision,
                size,
                seed,
                tuple(image_column or ()),
                tuple(images_from or ()),
                pass_rate_column,
            ),
            prompt=prompt,
            splits=split or (),
            held_out=held_out,
            exclude=exclude or (),
            limit=limit,
            seed=seed,
            if_exists=if_exists.value,
            max_prompt_characters=max_prompt_characters,
            unparsable=grader.unreadable if check_answers else None,
            progress=progress,
            images=images.value,
            pass_rates=PassRates(min_pass_rate, max_pass_rate),
            categories=category or (),
        )
    if as_json:
        typer.echo(json.dumps(prepared.manifest, sort_keys=True))
        return
    for line in _summary(prepared):
        typer.echo(line)


def _summary(prepared: Prepared) -> Iterator[str]:
    for split, counts in prepared.manifest["splits"].items():
        left_out = [f"{count} {reason.replace('_', ' ')}" for reason, count in counts["left_out"].items() if count]
        used = f"{split}: {counts['rows_used']} of {counts['rows_read']} rows used"
        yield f"{used}; left out: {', '.join(left_out) or 'none'}."
        for count, what in _NOTES.items():
            if counts[count]:
                yield f"note: {counts[count]} of them {what}."
        if alone := counts["excluded_by_words_alone"]:
            yield f"note: {alone} of those in an excluded benchmark by their words alone: on one side no picture was at hand."
        for reason, said in counts["first_left_out"].items():
            yield f"note: first {reason.replace('_', ' ')}, in {said}."
    for file in prepared.manifest["excluded"]["files"]:
        if unread := file["images_unreadable"]:
            yield f"note: {unread} of {file['questions']} questions of {file['name']} have images that cannot be read there."
    images = prepared.manifest["images"]
    if images["files"]:
        moving = f"; {images['animated']} are animations, seen by their first frame" if images["animated"] else ""
        size = f"{images['files']} different ones ({images['bytes'] / 1e6:.1f} MB)"
        yield f"images: {images['used']} in rows, {size}, kept as they came{moving}."
    for source in prepared.manifest["sources"]:
        for unread in filter(None, (source["unread_images"] or "").split(", ")):
            column = f"the column '{unread}' of {source['name']} looks like images and is not read"
            yield f"note: {column}; name it with --image-column {unread}, beside an --image-column for each other one to read."
        if source["image_files"] and not images["used"]:
            yield f"note: {source['name']} holds {source['image_files']} image files, and no row that is used names one."
        if beside := source["read_beside_archive"]:
            yield f"note: the archive {source['name']} holds images alone; its rows are those of {', '.join(beside)} beside it."
        if source["licence"]:
            yield f"licence of {source['name']}, as its page says: {source['licence']}."
    files = ", ".join(f"{split}.parquet ({count} problems)" for split, count in prepared.rows.items())
    yield f"{prepared.folder}: {files}, manifest.json."


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    if not sys.stderr.isatty():
        yield _plain_progress()
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("Reading ...") as status:
        yield lambda split, read, kept: status.update(f"{split}: {read:,} rows read, {kept:,} kept")


def _plain_progress() -> Callable[[str, int, int], None]:
    """Return a reporter that prints a line each time the number of rows read has doubled, and at the end of a split."""
    last: dict[str, int] = {}

    def report(split: str, read: int, kept: int) -> None:
        if read >= 2 * last.get(split, 0) or read % 100_000 == 0:
            last[split] = read
            typer.echo(f"{split}: {read} rows read, {kept} kept", err=True)

    return report
