"""The questions of benchmarks that training must not hold, with what their pictures show, for `luspo prepare-data --exclude`.

Pictures are looked for beside the benchmark's own file and nowhere else: a path such as `1.png` in the training data's folder is
another picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luspo_cli.data.archives import ImagePlaces, archives_of
from luspo_cli.data.columns import read_asked
from luspo_cli.data.image_columns import is_image_column
from luspo_cli.data.image_store import ImageStore
from luspo_cli.data.left_out import LeftOut, UnusableImage
from luspo_cli.data.overlap import ExcludedQuestions
from luspo_cli.data.reading import QUESTION_COLUMNS, choose_column, column_names, data_files, read_rows
from luspo_cli.data.sources import says_train
from luspo_cli.errors import UsageError
from luspo_cli.files import file_sha256

Excluded = tuple[str, tuple[str, ...] | None]
"""A question and what its images show; None where it has images and not all of them can be read."""


def read_excluded(paths: Sequence[Path], store: ImageStore) -> tuple[list[dict[str, Any]], ExcludedQuestions]:
    """Return what was read, for the manifest, and the questions; a folder's training files are not excluded.

    `store` decodes the images once and removes them when it finishes. UsageError where there is no file, or no question in it.
    """
    entries: list[dict[str, Any]] = []
    questions: list[Excluded] = []
    for path in paths:
        if path.is_dir():
            files = [file for file in data_files(path) if not says_train(file.stem)]
        elif path.is_file():
            files = [path]
        else:
            raise UsageError(f"There is no file or folder {path} to exclude.")
        found = 0
        known: dict[Path, Any] = {}
        for file in files:
            places = ImagePlaces(archives_of(path), beside=[file.parent], stem=file.stem, known=known)
            read = _questions(file, places, store, required=path.is_file())
            questions.extend(read)
            found += len(read)
            with_images = sum(bool(pictures) for _, pictures in read)
            unread = sum(pictures is None for _, pictures in read)
            counts = {"questions": len(read), "with_images": with_images, "images_unreadable": unread}
            entries.append({"name": file.name, "sha256": file_sha256(file), **counts})
        if found == 0:
            raise UsageError(f"{path} holds no question to exclude; give a benchmark's file or folder.")
    return entries, ExcludedQuestions(questions)


def _questions(file: Path, places: ImagePlaces, store: ImageStore, *, required: bool) -> list[Excluded]:
    try:
        names = column_names(file)
        column = choose_column(names, None, QUESTION_COLUMNS, option="another file", place=str(file))
    except UsageError:
        if required:
            raise
        return []  # a benchmark's folder holds other files too; the manifest shows 0 questions for this one
    found: list[Excluded] = []
    for row in read_rows(file, [column.partition(".")[0], *filter(is_image_column, names)]):
        question, images = read_asked(row, column)
        if not question.text:
            continue
        try:
            names_kept = None if isinstance(images, LeftOut) else [store.keep(image, places) for image in images]
        except UnusableImage:
            names_kept = None
        found.append((question.text, None if names_kept is None else store.pictures(names_kept)))
    return found
