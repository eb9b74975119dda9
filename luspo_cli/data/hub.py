"""Tables of the Hugging Face hub, read through its own clients: rows with undecoded images, and the commit they came from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from luspo_cli.data.archives import ImagePlaces
from luspo_cli.data.columns import ROWS_LOOKED_AT, Columns, SourceOptions, SourceRow, source_rows
from luspo_cli.data.image_columns import unread_image_columns
from luspo_cli.data.published import Published
from luspo_cli.errors import RunError, first_line

_ROWS_AT_ONCE = 32
Rows = Callable[[], Iterator[SourceRow]]


def hub_tables(
    name: str, published: Published, options: SourceOptions
) -> tuple[dict[str, tuple[Rows, Columns]], tuple[str, ...], str | None]:
    """The rows and columns of each split of a hub data set, the usual splits first, its unread images, and its revision.

    Raises RunError where the hub cannot be reached, in a sentence that says what to do without it.
    """
    hub_id = published.hub_id
    try:
        import datasets

        only = {} if published.hub_files is None else {"data_files": published.hub_files}
        loaded = datasets.load_dataset(hub_id, published.hub_config, revision=options.revision, **only)
        downloaded = _image_places(published, options)
    except Exception as error:  # the hub client raises dozens of kinds; each one means "no data"
        how = f"give its files with --from PATH (`luspo prepare-data {name} --from PATH ...`)"
        raise RunError(
            f"{hub_id} is no local path and could not be loaded from the Hugging Face hub ({first_line(error)}); "
            "check the name and the network"
            + (f", or {how}." if published.data_source else ", or download it and give the file as the source.")
        ) from error
    places = ImagePlaces([*options.images_from, *downloaded])
    splits: dict[str, tuple[Rows, Columns]] = {}
    unread: dict[str, None] = {}
    for split, table in loaded.items():
        names = list(table.column_names)
        names += [f"{column}.{inner}" for column in names for inner in _inner_names(table.features[column])]
        columns = Columns.chosen(names, options, f"{hub_id} ({split})", published.gold, places)
        splits[str(split)] = _rows(table, columns), columns
        others = [name for name in columns.unread(names) if name in table.column_names]
        first = table.select(range(min(ROWS_LOOKED_AT, len(table)))).select_columns(others)
        unread |= dict.fromkeys(unread_image_columns(first.with_format("arrow")[:].to_pylist(), others))
    ordered = {split: splits[split] for split in (*published.splits, *splits) if split in splits}
    return ordered, tuple(unread), _commit(loaded) or options.revision


def _image_places(published: Published, options: SourceOptions) -> list[Path]:
    """The repository's archive of images, and the folder below which the hub's clients keep what they download."""
    import huggingface_hub

    places = [Path(huggingface_hub.constants.HF_HOME)]
    if published.images is not None and not options.images_from:
        archive = huggingface_hub.hf_hub_download(
            published.hub_id, published.images, repo_type="dataset", revision=options.revision
        )
        places.insert(0, Path(archive))
    return [place for place in places if place.exists()]


def _commit(loaded: Mapping[Any, Any]) -> str | None:
    """Return the hub commit that the loaded files came from, where their addresses name it."""
    for table in loaded.values():
        for address in getattr(table.info, "download_checksums", None) or ():
            match = re.search(r"@([0-9a-f]{40})/", str(address))
            if match:
                return match.group(1)
    return None


def _inner_names(feature: Any) -> list[str]:
    return list(feature) if isinstance(feature, Mapping) else []


def _rows(table: Any, columns: Columns) -> Rows:
    def rows() -> Iterator[SourceRow]:
        # As Arrow keeps them: the client would decode each image that a row holds.
        read = table.select_columns([*dict.fromkeys(columns.top_level())]).with_format("arrow")
        batches = read.iter(batch_size=_ROWS_AT_ONCE)
        yield from source_rows((row for batch in batches for row in batch.to_pylist()), columns)

    return rows
