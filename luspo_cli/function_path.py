"""A function of the user's own, named `path/to/file.py:name` or `package.module:name`, and what went wrong in it.

Decided here: a file is loaded as it lies there, with its folder first on the import path, so that it may import its
neighbours; a module is looked for in the current folder as well. Whatever the user's code raises becomes the last line of its
traceback with the line of the user's file, never the traceback.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from luspo_cli.errors import UsageError

_NAME = re.compile(r"[A-Za-z_]\w*")
_LONGEST = 400
"""Characters of an error; some libraries write pages."""


@dataclass(frozen=True, slots=True)
class FunctionPath:
    """Where a function is: a Python file or a module, and its name there."""

    place: str
    name: str
    installed: bool = False
    """Named by an installed package: a module of the current folder does not go first."""

    @property
    def is_file(self) -> bool:
        return self.place.endswith(".py")

    def __str__(self) -> str:
        return f"{self.place}:{self.name}"


def parse_function_path(text: str) -> FunctionPath:
    """`file.py:name` or `module:name`; raises ValueError, the end of a sentence, for anything else."""
    place, colon, name = text.strip().rpartition(":")
    if not colon or not place or not _NAME.fullmatch(name):
        raise ValueError(f"'{text}' is no function: write path/to/file.py:name or package.module:name")
    if not place.endswith(".py") and not all(_NAME.fullmatch(part) for part in place.split(".")):
        raise ValueError(f"'{text}' names neither a file that ends with .py nor a module: write path/to/file.py:name")
    return FunctionPath(place, name)


def load_function(path: FunctionPath, kind: type | None = None) -> tuple[Any, Path]:
    """The function, or the value of a `kind`, and the file that it was read from.

    Runs the user's module: only where that may hang or end the process.

    UsageError, one sentence, where there is no such file, module or name, or where the import fails.
    """
    found = load_module(path)
    value = getattr(found, path.name, None)
    if value is None:
        fits = callable if kind is None else lambda one: isinstance(one, kind)
        known = [name for name, one in vars(found).items() if fits(one) and not name.startswith("_")]
        none = f"no {kind.__name__ if kind else 'function'}"
        raise UsageError(f"{path.place} has no '{path.name}'; it has {', '.join(known) or none}")
    return value, Path(getattr(found, "__file__", None) or path.place)


def load_module(path: FunctionPath) -> ModuleType:
    """The file or module of a path, whatever its name there; as `load_function`."""
    if path.is_file:
        return _load_file(path)
    if not path.installed:
        _look_in(Path.cwd())
    return _load_module(path)


def _load_file(path: FunctionPath) -> ModuleType:
    file = source_file(path)
    name = f"own_{file.stem}_{abs(hash(str(file)))}"  # two files of one name are two modules
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # its name ends with .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _look_in(file.parent)
    sys.modules[name] = module  # dataclasses and pickle look for it there
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UsageError(f"{path.place} cannot be imported: {said(error, file)}") from None
    return module


def _load_module(path: FunctionPath) -> ModuleType:
    try:
        return importlib.import_module(path.place)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise UsageError(f"the module {path.place} cannot be imported: {said(error)}") from None


def source_file(path: FunctionPath) -> Path:
    """The absolute file of a `file.py:name`; UsageError where there is none."""
    file = Path(path.place).expanduser()
    if not file.is_file():
        looked = "" if file.is_absolute() else f" in {Path.cwd()}"
        raise UsageError(f"there is no file {path.place}{looked}")
    return file.resolve()


def said(error: BaseException, file: Path | None = None) -> str:
    """The last line of an error's traceback, with the last line of the user's `file` that it passed through."""
    last = " ".join(traceback.format_exception_only(error)[-1].split())[:_LONGEST].rstrip(".")
    if isinstance(error, SyntaxError) and error.filename:
        return f"{last} ({os.path.basename(error.filename)}, line {error.lineno})" if "line" not in last else last
    frames = [one for one in traceback.extract_tb(error.__traceback__) if file is None or one.filename == str(file)]
    outside = [one for one in frames if "importlib" not in one.filename and one.filename != __file__]
    return f"{last} ({os.path.basename(outside[-1].filename)}, line {outside[-1].lineno})" if outside else last


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
