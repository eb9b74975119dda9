"""An objective of one's own: a built-in one, some of whose four parts are functions of the user's (docs/own-objective.md).

Decided here: the base fixes what is not replaced, the keys that can be set, and the level of the ratio, so that a function that
replaces one part has one form. The file is read once, where the objective is named: a stored configuration knows base, parts and
digest, and is read without running the user's code. Standard library only, as `objective` is.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luspo_cli.errors import UsageError
from luspo_cli.function_path import FunctionPath, load_function, load_module, parse_function_path, source_file

if TYPE_CHECKING:
    from luspo_cli.config.objective import ObjectiveConfig

OWN = "own"
"""What the configuration calls a part that a function replaces."""
ENTRY_POINTS = "luspo.objectives"
"""The group under which an installed package names its objectives."""
_USABLE = re.compile(r"\w[\w.-]*")
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "advantage": ("rewards",),
    "ratio": ("batch",),
    "surrogate": ("ratio", "batch"),
    "aggregation": ("batch",),
}
"""Part → what its function is called with, by place."""
_TEXTS = ("clip_on", "clip_band", "length_normalise")
_NOT_SET = ("name", "base", "sha256", "kl_coefficient", "kl_estimator", "entropy_coefficient", *PARAMETERS)
"""Keys that `settings` cannot have."""


@dataclass(frozen=True)
class OwnObjective:
    """A built-in objective with parts replaced; what the name in `objective.name` stands for in the user's file.

    Example:
        luspo_again = OwnObjective("gspo", aggregation=lambda batch: 1 / batch.sequences, settings={"clip_low": 2e-3})
    """

    base: str
    """A name of `NAMED_OBJECTIVES`."""
    advantage: Callable[[Sequence[float]], Sequence[float]] | None = None
    """`(rewards)`: the rewards of one group → one advantage a response."""
    ratio: Callable[[Any], Any] | None = None
    """`(batch)`: an `ObjectiveBatch` → [..., B, 1] where the base has one ratio a sequence, else [..., B, T]."""
    surrogate: Callable[[Any, Any], Any] | None = None
    """`(ratio, batch)` → losses to minimise, [..., B, T] or [..., B, 1], or a `SurrogateLoss` with marks of what was clipped."""
    aggregation: Callable[[Any], Any] | None = None
    """`(batch)` → what the loss of one token counts for; broadcasts to [..., B, T]."""
    settings: Mapping[str, float | str] = field(default_factory=dict)
    """Free keys of the base, such as clip_low, with values of one's own; `--set` goes on top."""

    def __post_init__(self) -> None:
        if not self.replaced:
            raise ValueError(f"an OwnObjective replaces one of {', '.join(PARAMETERS)} at least, and this one none")
        for part in self.replaced:
            _check_signature(part, getattr(self, part))

    @property
    def replaced(self) -> tuple[str, ...]:
        """The parts that are functions."""
        return tuple(part for part in PARAMETERS if getattr(self, part) is not None)


@dataclass(frozen=True)
class LoadedObjective:
    """An objective of one's own and the file that it was read from."""

    objective: OwnObjective
    file: Path
    sha256: str


@cache
def installed() -> Mapping[str, Mapping[str, str]]:
    """Names of installed objectives → `package.module:name` → the package with its version; nothing of them is imported.

    A name of two packages has two places. Read package by package: one whose entry points are malformed concerns who uses it.
    """
    from importlib.metadata import distributions

    found: dict[str, dict[str, str]] = {}
    packages: set[str] = set()
    for package in distributions():
        try:
            named = ENTRY_POINTS in (package.read_text("entry_points.txt") or "")
            entries = package.entry_points.select(group=ENTRY_POINTS) if named else ()
        except (TypeError, ValueError):
            continue
        if not entries or package.name in packages:  # an older copy behind the one that is imported
            continue
        packages.add(package.name)
        for entry in entries:
            place = entry.value.partition("[")[0].strip()  # without the extras that it may ask for
            found.setdefault(entry.name, {}).setdefault(place, f"{package.name} {package.version}")
    return found


def is_own(name: str) -> bool:
    """Whether a name that is not built in is one in a file, in a module or of a package; a lone file too, refused when read."""
    return ":" in name or name.endswith(".py") or name in installed()


def function_path(name: str) -> FunctionPath:
    """Where an objective of one's own is; ValueError, one sentence, where the name cannot be read."""
    places = {} if ":" in name else installed().get(name, {})
    if not places:
        return parse_function_path(name)
    if reason := unusable(name):
        raise ValueError(f"objective {name} {reason}" if len(places) > 1 else f"{_of_package(name)}: {reason}")
    return replace(parse_function_path(next(iter(places))), installed=True)


def unusable(name: str) -> str | None:
    """Why an installed objective's name cannot be used, as a clause; None where nothing is known before it is imported."""
    places = installed()[name]
    if len(places) > 1:
        return f"is in {len(places)} packages, {' and '.join(places.values())}: name {' or '.join(places)}"
    (place,) = places
    if not _USABLE.fullmatch(name):  # it becomes the name of a folder
        return f"a name has letters, digits, '_', '-' and '.' alone: name {place} instead"
    if name.endswith(".py"):
        return f"a name that ends with .py is read as a file's: name {place} instead"
    try:
        parse_function_path(place)
    except ValueError as error:
        return f"its entry point {error}"
    return None


def with_installed(built_in: Iterable[str]) -> tuple[str, ...]:
    """Built-in names and behind them those of packages that can be used, each once: a built-in name, `custom` too, goes first."""
    first = (*built_in,)
    return (*first, *(name for name in installed() if name not in (*first, "custom") and not unusable(name)))


def _of_package(name: str) -> str:
    """The beginning of a sentence on an installed objective."""
    return f"objective {name} of the package {' and '.join(installed()[name].values())}"


def label_of(name: str) -> str:
    """The name in the name of a folder: `some/loss.py:mine` is `loss-mine`."""
    return (
        f"{Path(name.rpartition(':')[0]).name.removesuffix('.py')}-{name.rpartition(':')[2]}" if ":" in name else name
    )


def misnamed(given: str, used: str) -> str | None:
    """Why `given` can be meant for no run, as far as its file is there or is that of the objective `used`; None where it can."""
    if not is_own(given) or given == used:
        return None
    try:
        path = function_path(given)
        place = _place(path)
        if not is_own(used) or place != _place(function_path(used)):
            return None
        load_own(given)
    except (UsageError, ValueError) as error:
        return str(error)
    same = path.name == function_path(used).name
    return f"this is {used}, spelled in another way: write it as the run does" if same else None


def _place(path: FunctionPath) -> Path | str:
    return source_file(path) if path.is_file else path.place


def check_labels(names: Sequence[str]) -> None:
    """UsageError where runs of two objectives would be one folder."""
    labels = [label_of(name) for name in names]
    for label in labels:
        if labels.count(label) > 1:
            same = " and ".join(name for name in names if label_of(name) == label)
            raise UsageError(
                f"--objectives: {same} are both called {label} in the names of folders: name each objective once, or rename"
                " one of them"
            )


def load_own(name: str) -> LoadedObjective:
    """Read the user's file, once in a process; UsageError, one sentence, where there is no such objective."""
    return _load(name, str(Path.cwd()))


@cache
def _load(name: str, folder: str) -> LoadedObjective:
    from luspo_cli.files import file_sha256

    if name.endswith(".py"):
        raise UsageError(f"{name} is a file and no objective: name {' or '.join(objectives_of(name))}")
    try:
        path = function_path(name)
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        found, file = load_function(path, OwnObjective)
        if not isinstance(found, OwnObjective):
            raise UsageError(
                f"{path if path.installed else name} is a {type(found).__name__} and no OwnObjective: write {path.name} ="
                " OwnObjective('gspo', ...), from luspo_cli.objectives"
            )
        if not file.is_file():
            raise UsageError(f"{file} is no file of its own, whose digest a run records: unpack it")
    except UsageError as error:
        raise UsageError(f"{_of_package(name)}: {error}" if path.installed else str(error)) from None
    return LoadedObjective(found, file, file_sha256(file))


def objectives_of(place: str) -> list[str]:
    """`place:name` of every objective in a file or module; UsageError where it cannot be imported or has none."""
    if not place.endswith(".py") and Path(place).exists():
        raise UsageError(f"{place} is no Python file: name one that ends with .py, or a module")
    module = load_module(FunctionPath(place, ""))
    found = [f"{place}:{name}" for name, one in vars(module).items() if isinstance(one, OwnObjective)]
    if not found:
        raise UsageError(
            f"{place} has no OwnObjective: write NAME = OwnObjective('gspo', ...), from luspo_cli.objectives"
        )
    return found


def functions_of(config: ObjectiveConfig) -> OwnObjective:
    """The functions of a configuration; UsageError where the file is not there, or replaces other parts than the configuration.

    The file's digest is compared by provenance, which knows what was allowed.
    """
    found = load_own(config.name).objective
    if (found.base, found.replaced) != (config.base, config.own_parts):
        raise UsageError(
            f"{config.name} replaces {', '.join(found.replaced)} of {found.base} now, and the configuration has"
            f" {', '.join(config.own_parts)} of {config.base}: put the file back, or begin again"
        )
    return found


def own_keys(config: ObjectiveConfig) -> dict[str, Any]:
    """What the file of a configuration that names one says of its keys, those that are set left out; nothing where the base is
    known. ValueError, one sentence, where there is no such file or it does not fit."""
    name, given = config.name, vars(config)
    if config.base or not is_own(name):
        return {}
    try:
        found = load_own(name)
    except UsageError as error:
        raise ValueError(str(error)) from None
    own = found.objective
    if not isinstance(own.base, str) or not isinstance(own.settings, Mapping):
        what = "base" if not isinstance(own.base, str) else "settings"
        wanted = "the name of a built-in objective" if what == "base" else "a dict of keys of the base with values"
        raise ValueError(f"{name}: {what} = {getattr(own, what)!r} must be {wanted}")
    keys: dict[str, Any] = {"base": own.base, "sha256": found.sha256}
    for part in own.replaced:
        if given[part] not in (None, OWN):
            raise ValueError(f"{name} brings its own {part} and cannot take '{given[part]}': leave {part} out")
        keys[part] = OWN
    for key, value in own.settings.items():
        if key not in given or key in _NOT_SET:
            raise ValueError(
                f"{name}: settings have no '{key}'; they have the free keys of {own.base}, such as clip_low"
            )
        wanted = str if key in _TEXTS else (int, float)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ValueError(f"{name}: settings: {key} = {value!r} is no {'text' if key in _TEXTS else 'number'}")
        if given[key] is None:
            keys[key] = value if isinstance(value, str) else float(value)
    return keys


def unfit(config: ObjectiveConfig, own: Sequence[str]) -> str | None:
    """Say why functions cannot replace the parts `own` of this configuration; None where they can."""
    reads_ratio = "surrogate" in own or (config.surrogate in ("clip", "cispo", "sapo") and not config.clips_log_ratio)
    if "ratio" in own and not reads_ratio:
        scale = f" clipped on the {config.clip_on}" if config.clips_log_ratio and config.surrogate == "clip" else ""
        return (
            f"{config.name} replaces the ratio of {config.base}, whose surrogate '{config.surrogate}'{scale} does not read it:"
            " replace the surrogate too, or take another base"
        )
    if config.clip_band == "balanced" and set(own) - {"advantage"}:
        return f"clip_band = 'balanced' knows the parts of luspo alone, and {config.name} replaces {', '.join(own)}: leave it out"
    return None


def _check_signature(part: str, function: Any) -> None:
    """TypeError, the end of a sentence, where the function of a part cannot be called as it will be."""
    wanted = ", ".join(PARAMETERS[part])
    if not callable(function):
        raise TypeError(f"{part} is {function!r} and no function: give one that is called as {part}({wanted})")
    try:
        signature = inspect.signature(function)
        signature.bind(*PARAMETERS[part])
    except TypeError:
        name = getattr(function, "__name__", type(function).__name__)
        raise TypeError(f"{part} is called as {part}({wanted}), and {name}{signature} cannot be") from None
    except ValueError:  # of a builtin, which has none that can be read
        return
