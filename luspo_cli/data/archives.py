"""Where the images that rows name by path are: in folders, or in archives, of which only the named members are read.

An image's name in an archive never becomes a path on the disk: its bytes are read, bounded, and stored under a name made from
them. Links, devices and names that lead out of the archive are no members here. A compressed tar is unpacked once, as a whole,
into one scratch file, since nothing in it can be found otherwise; what it may grow to is bounded by its own size. Tables are
unpacked under their own names, into a folder of their own that goes when the source does.
"""

from __future__ import annotations

import gzip
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from io import RawIOBase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from luspo_cli.data.image_columns import BEGINNINGS, names_an_image
from luspo_cli.data.images import image_file
from luspo_cli.data.left_out import LeftOut, UnusableImage
from luspo_cli.errors import UsageError, first_line
from luspo_cli.files import said_in_one_sentence

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
MOST_BYTES = 64 * 2**20
"""Of one image file."""
MOST_MEMBERS = 5_000_000
_MOST_GROWTH = 100
"""Times an archive's own size, beyond the free part, that is read from it: pictures hardly shrink, bombs do."""
_FREE_GROWTH = 2**30
_CHUNK = 2**20

_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError)


def is_archive(path: Path) -> bool:
    """Whether a file is an archive, by its name."""
    return path.name.lower().endswith(ARCHIVES)


def stem_of(name: str) -> str:
    """The name of a folder, or of an archive without its ending."""
    return name[: -len(next((end for end in ARCHIVES if name.lower().endswith(end)), "")) or None]


def archives_of(given: Path) -> list[Path]:
    """The archive that is given itself, or the only one in the folder that is."""
    if not given.is_dir():
        return [given] if given.is_file() and is_archive(given) else []
    there = [file for file in sorted(given.iterdir()) if file.is_file() and is_archive(file)]
    return there if len(there) == 1 else []


class ImagePlaces:
    """Folders and archives in which images are looked for, one after the other."""

    def __init__(
        self,
        places: Sequence[Path],
        *,
        beside: Sequence[Path] = (),
        stem: str = "",
        known: dict[Path, _Folder | _Archive] | None = None,
    ) -> None:
        """`beside`: the folders of a data file, which come first, with their archives of the name `images` or `stem`.

        `known`: what other files of the source look into too, so that an archive is listed, or unpacked, once.
        """
        known = {} if known is None else known
        folders = [*dict.fromkeys(folder.resolve() for folder in beside if folder.is_dir())]
        names = [f"{name}{end}" for name in dict.fromkeys(("images", "image", stem)) for end in ARCHIVES]
        own = [*folders, *(folder / name for folder in folders for name in names if (folder / name).is_file())]
        for place in places:
            if not place.is_dir() and not (place.is_file() and is_archive(place)):
                raise UsageError(f"{place} is neither a folder nor an archive ({', '.join(ARCHIVES)}) of images.")
        # An archive keeps its name: in the hub's cache it is a link to a file whose name says nothing.
        named = (place.resolve() if place.is_dir() else place.absolute() for place in places)
        looked_into = dict.fromkeys((*own, *named))
        self._names = [place.name or str(place) for place in looked_into]
        for place in looked_into:
            if place not in known:
                known[place] = _Folder(place) if place.is_dir() else _Archive(place)
        self._places = [known[place] for place in looked_into]

    def read(self, path: str, scratch: Path) -> bytes:
        """The bytes of the image at `path`; a compressed tar is unpacked into the folder `scratch`.

        Raises UnusableImage where no place has it, it is too large, or it leads out of all of them.
        """
        if "://" in path[:12]:
            raise UnusableImage(LeftOut.IMAGE_MISSING, f"{path} is an address; download the image and name its file")
        outside: UnusableImage | None = None
        for place in self._places:
            try:
                content = place.read(path, scratch)
            except UnusableImage as error:
                if error.reason is not LeftOut.IMAGE_OUTSIDE:
                    raise
                outside = error
                continue
            if content is not None:
                return content
        if outside is not None:
            raise UnusableImage(LeftOut.IMAGE_OUTSIDE, f"the path {path} leads out of {self}; name its folder")
        raise UnusableImage(LeftOut.IMAGE_MISSING, f"the image {path} is not in {self}")

    def __str__(self) -> str:
        return " or ".join(self._names) or "the table, which has no folder of images"


_IMAGES = "images"
"""Folder in which benchmarks keep images that their tables name without it."""


def _shortened(path: str, name: str) -> list[str]:
    """The path, and the path without its first folder where that is the name of the place in which it is looked for."""
    first, _, rest = path.partition("/")
    return [path, rest] if rest and first == stem_of(name) else [path]


def unpacked_tables(
    archive: Path, endings: tuple[str, ...], images: list[str] | None = None
) -> TemporaryDirectory[str] | None:
    """A folder with the members of an archive whose names end so, which goes when the object does; None for images alone.

    The names of members that are images are added to `images`.
    Raises UsageError where the archive cannot be read, grows beyond all measure, or holds neither, and RunError where there is
    no room.
    """
    folder = TemporaryDirectory(prefix="luspo-tables-")
    images = [] if images is None else images
    _Archive(archive).unpack(endings, Path(folder.name), images)
    if any(Path(folder.name).iterdir()):
        return folder
    folder.cleanup()
    if not images:
        raise UsageError(
            f"{archive} holds neither data files ({', '.join(endings)}) nor images; give the data file itself."
        )
    return None


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        # A snapshot in the cache of the hub's clients has links to the files, which lie beside all snapshots.
        self._linked = self._root.parents[1] / "blobs" if self._root.parent.name == "snapshots" else None

    def read(self, path: str, scratch: Path) -> bytes | None:
        del scratch
        names = _shortened(path.removeprefix(f"{self._root}/"), self._root.name)
        for name in [*names, f"{_IMAGES}/{path}"]:
            try:
                file = image_file(name, self._root, linked=self._linked)
            except UnusableImage as error:
                if error.reason is LeftOut.IMAGE_OUTSIDE:
                    raise
                continue
            try:
                with file.open("rb") as stream:
                    return _bounded(stream, path)
            except OSError as error:
                raise UnusableImage(
                    LeftOut.IMAGE_UNREADABLE, f"the image {path} cannot be read ({error.strerror})"
                ) from error
        return None


class _Archive:
    """A zip or tar file, whose members are listed when the first is asked for."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._members: dict[str, Callable[[], BinaryIO | None]] | None = None
        self._around: list[str] = []
        """The folders that all members are in, the outermost first: an archive may hold a folder or what is in it."""
        self._left = _MOST_GROWTH * file.stat().st_size + _FREE_GROWTH

    def read(self, path: str, scratch: Path) -> bytes | None:
        if self._members is None:
            self._members = self._listed(scratch)
            self._around = _folders_around(self._members)
        names = _shortened(posixpath.normpath(path), self._file.name)
        for name in [*names, *(f"{folder}/{name}" for folder in self._around for name in names)]:
            opened = self._members.get(name)
            if opened is None:
                continue
            try:
                stream = opened()
                if stream is None:
                    continue
                with stream:
                    content = _bounded(stream, path)
            except (*_DAMAGED, OSError) as error:
                said = f"the image {path} in {self._file.name} cannot be read ({first_line(error)})"
                raise UnusableImage(LeftOut.IMAGE_UNREADABLE, said) from error
            self._spend(len(content))
            return content
        return None

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise UsageError(
                f"{self._file} unpacks to more than {_MOST_GROWTH} times its own size, which no archive of pictures does;"
                " unpack it yourself and name the folder."
            )

    def _listed(self, scratch: Path) -> dict[str, Callable[[], BinaryIO | None]]:
        try:
            return self._of_zip() if self._file.name.lower().endswith(".zip") else self._of_tar(scratch)
        except (*_DAMAGED, OSError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> UsageError:
        return UsageError(f"{self._file} cannot be read as an archive: {first_line(error)}.")

    def _of_zip(self) -> dict[str, Callable[[], Any]]:
        archive = zipfile.ZipFile(self._file)
        self._count(len(archive.infolist()))
        return {
            name: lambda info=info: archive.open(info)  # type: ignore[misc]
            for info in archive.infolist()
            if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16) and (name := _inside(info.filename))
        }

    def _of_tar(self, scratch: Path) -> dict[str, Callable[[], Any]]:
        file = self._file
        if not file.name.lower().endswith(".tar"):
            file = self._unpacked(scratch)
        archive = tarfile.open(file, "r:")  # noqa: SIM115 - members are read from it until the preparation ends
        members: dict[str, Callable[[], Any]] = {}
        for number, info in enumerate(archive):
            self._count(number)
            if info.isreg() and (name := _inside(info.name)):
                members[name] = lambda info=info: archive.extractfile(info)  # type: ignore[misc]
        return members

    def _unpacked(self, scratch: Path) -> Path:
        """The tar file inside a compressed one, written to the scratch folder; it counts against the bound once, as a whole."""
        scratch.mkdir(parents=True, exist_ok=True)
        target = scratch / f"{len(list(scratch.iterdir()))}.tar"
        with gzip.open(self._file) as packed, target.open("wb") as out:
            while chunk := packed.read(_CHUNK):
                self._spend(len(chunk))
                out.write(chunk)
        self._left = _MOST_GROWTH * target.stat().st_size + _FREE_GROWTH
        return target

    def unpack(self, endings: tuple[str, ...], folder: Path, images: list[str]) -> None:
        """Write the members whose names end so into a folder, under their own names; add those of images to `images`."""
        try:
            if self._file.name.lower().endswith(".zip"):
                for name, opened in self._of_zip().items():
                    self._take(opened, name, endings, folder, images)
                return
            # As a stream: of a compressed tar nothing else needs to be kept.
            opening = open if self._file.name.lower().endswith(".tar") else gzip.open
            with (
                opening(self._file, "rb") as raw,
                tarfile.open(fileobj=_Counted(raw, self._spend), mode="r|") as archive,
            ):
                for number, info in enumerate(archive):
                    self._count(number)
                    inside = _inside(info.name)
                    if info.isreg() and inside is not None:
                        self._take(partial(archive.extractfile, info), inside, endings, folder, images)
        except (*_DAMAGED, OSError) as error:
            raise self._unreadable(error) from error

    def _take(
        self, opened: Callable[[], Any], name: str, endings: tuple[str, ...], folder: Path, images: list[str]
    ) -> None:
        """Write a member whose name ends so; of another one note whether it is an image."""
        if not name.lower().endswith(endings):
            images += [name] * _is_image(opened, name)
            return
        if posixpath.basename(name).startswith("."):
            return
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        then = "or set TMPDIR to a folder with room, then give the same command again"
        with opened() as stream, said_in_one_sentence(f"the tables of {self._file}", then), target.open("wb") as out:
            while chunk := stream.read(_CHUNK):
                if isinstance(stream, zipfile.ZipExtFile):
                    self._spend(len(chunk))
                out.write(chunk)

    def _count(self, members: int) -> None:
        if members > MOST_MEMBERS:
            raise UsageError(f"{self._file} has more than {MOST_MEMBERS} members; unpack it and name the folder.")


def _is_image(opened: Callable[[], Any], name: str) -> bool:
    """Whether a member is an image by its name, or else by its first bytes."""
    if names_an_image(name):
        return True
    with opened() as stream:
        return bool(stream.read(8).startswith(BEGINNINGS))


class _Counted(RawIOBase):
    """A stream of bytes of which each is counted as it is read."""

    def __init__(self, stream: Any, count: Callable[[int], None]) -> None:
        self._stream, self._count = stream, count

    def read(self, size: int = -1, /) -> bytes:
        content: bytes = self._stream.read(size)
        self._count(len(content))
        return content


def _inside(name: str) -> str | None:
    """A member's name without `.` and `..` in it; None where it would lead out of the archive, or macOS alone put it there."""
    name = posixpath.normpath(name)
    return None if name.startswith(("/", "..", "__MACOSX/")) or "\0" in name else name


def _folders_around(members: Iterable[str]) -> list[str]:
    folders = {posixpath.dirname(name) for name in members}
    common = posixpath.commonpath(folders) if folders else ""
    parts = common.split("/") if common else []
    return ["/".join(parts[: number + 1]) for number in range(len(parts))]


def _bounded(stream: BinaryIO, path: str) -> bytes:
    content = stream.read(MOST_BYTES + 1)
    refuse_large(content, path)
    return content


def refuse_large(content: bytes, called: str) -> None:
    """UnusableImage for the file of an image, named as it is `called`, that has more than `MOST_BYTES`."""
    if len(content) > MOST_BYTES:
        raise UnusableImage(LeftOut.IMAGE_TOO_LARGE, f"the image {called} has more than {MOST_BYTES // 2**20} MiB")
