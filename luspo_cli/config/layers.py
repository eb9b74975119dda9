"""Defaults → preset → configuration file → `--objective` → `--set`, the later one wins, and every error names its origin.

TOML holds exactly the sections of `TrainRun`, and beside them `[for_objective.NAME]`: free keys of the objective (a clip range)
that hold when that objective is chosen. A preset is an ordinary configuration file that ships with the package.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from luspo_cli.config.objective import NAMED_OBJECTIVES, ObjectiveConfig
from luspo_cli.config.own_objective import is_own, misnamed, with_installed
from luspo_cli.config.run import MADE, MADE_TASKS, TrainRun
from luspo_cli.errors import UsageError, nearest

Root = TypeVar("Root", bound=BaseModel)
DEFAULT_OBJECTIVE = "luspo"
FOR_OBJECTIVE = "for_objective"
FREE_KEYS = frozenset(entry.name for entry in fields(ObjectiveConfig)) - {
    "name",
    "advantage",
    "ratio",
    "surrogate",
    "aggregation",
    "base",
    "sha256",
}
"""Keys of the objective that its name does not fix."""


_MADE_SECTIONS = ("warmup", "model.shape")
"""Sections that describe a made model and no other."""


def presets_folder() -> Path:
    """Where the shipped presets lie: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).resolve().parents[1] / "presets"
    return inside if inside.is_dir() else inside.parents[1] / "presets"


def preset_names() -> list[str]:
    """Names of all shipped presets, sorted."""
    return sorted(path.stem for path in presets_folder().glob("*.toml"))


def about_preset(name: str) -> list[str]:
    """The comment that a preset begins with, line by line: its model, data, licences and commands."""
    lines = (presets_folder() / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#").removeprefix(" ") for line in takewhile(lambda line: line.startswith("#"), lines)]


def resolve_train(
    *,
    preset: str | None = None,
    objective: str | None = None,
    sets: Sequence[str] = (),
    config_file: Path | None = None,
) -> TrainRun:
    """Merge the layers and validate the result. UsageError, one sentence, for the first thing that is wrong."""
    layers: list[tuple[dict[str, Any], str]] = []
    if preset is not None:
        if preset not in preset_names():
            hint = nearest(preset, preset_names())
            raise UsageError(f"unknown preset '{preset}'{hint}; there are {', '.join(preset_names())}")
        layers.append((read_toml(presets_folder() / f"{preset}.toml"), f"presets/{preset}.toml"))
    if config_file is not None:
        layers.append((read_toml(config_file), str(config_file)))
    if objective is not None:
        _check_objective(objective)
        layers.append(({"objective": {"name": objective}}, "--objective"))
    layers += [(parse_set(assignment), "--set") for assignment in sets]

    if preset is not None and _last_named(layers, "model", "path") != MADE:
        layers[0] = _without_made_parts(layers[0][0]), layers[0][1]
    name = _last_named(layers, "objective", "name", DEFAULT_OBJECTIVE)
    if objective not in (None, name):
        raise UsageError(f"--objective {objective} and --set objective.name={name}: give one of the two")
    merged: dict[str, Any] = {"objective": {"name": name}}
    origins: dict[str, str] = {}
    for layer, origin in layers:
        merge(merged, origins, _of_objective(layer, name, origin), f"{origin}, [{FOR_OBJECTIVE}.{name}]")
        merge(merged, origins, {key: value for key, value in layer.items() if key != FOR_OBJECTIVE}, origin)
    config = validated(TrainRun, merged, origins)
    _refuse_unread(config, layers, origins)
    return config


def preset_objective(preset: str, name: str) -> dict[str, Any]:
    """The [objective] section of `name` with what a preset says of its free keys; a `custom` one is composed by keys on top."""
    if name == "custom":
        return {"name": name}
    found = resolve_train(preset=preset, objective=name).objective
    return {"name": name, **{key: value for key in FREE_KEYS if (value := getattr(found, key)) is not None}}


def _validated(root: type[Root], merged: dict[str, Any]) -> Root:
    """Validate, taking a single text where a list belongs as a list of one: `run.track=tensorboard` can mean nothing else."""
    try:
        return root.model_validate(merged)
    except ValidationError as error:
        lone = [e["loc"] for e in error.errors() if e["type"] == "tuple_type" and isinstance(e["input"], str)]
        if not lone:
            raise
    for *sections, key in lone:
        table: Any = merged
        for section in sections:
            table = table[section]
        table[key] = [table[key]]
    return root.model_validate(merged)


def _refuse_unread(
    config: TrainRun, layers: Sequence[tuple[Mapping[str, Any], str]], origins: Mapping[str, str]
) -> None:
    """UsageError for a key that nothing in this run reads.

    Asked of what is typed and not of `TrainRun`: a stored configuration may hold such a key and must resume.
    """
    if config.data.train in MADE_TASKS and not config.data.shuffle:
        raise UsageError(
            f"{origins['data.shuffle']}: data.shuffle = false is for problems from a file: leave it out with data.train ="
            f" '{config.data.train}', which makes every batch anew"
        )
    if config.run.engine != "verl":
        _refuse_for_verl(config, layers, origins)
    sections = [layer.get("evaluation", {}) for layer, _ in layers]
    off = max((place for place, section in enumerate(sections) if "every" in section), default=-1)
    for section in sections[off + 1 :] if not config.evaluation.every else ():
        # What stands beside or below an `every = 0` belongs to the evaluations that it turns off: no mistake.
        for key in config.evaluation.changed(*section):
            raise UsageError(
                f"{origins[f'evaluation.{key}']}: evaluation.{key} changes nothing while evaluation.every is 0: set that"
                " too, or leave this out"
            )


def _refuse_for_verl(
    config: TrainRun, layers: Sequence[tuple[Mapping[str, Any], str]], origins: Mapping[str, str]
) -> None:
    """UsageError for what only verl reads, but in a preset: there it is the other form of the same run."""
    for layer, origin in layers:
        # A file may hold the whole of a configuration: what stands there as it is by default asks for nothing.
        for key in config.verl.changed(*layer.get("verl", {})) if not origin.startswith("presets/") else ():
            raise UsageError(
                f"{origins[f'verl.{key}']}: verl.{key} is for verl alone: give --engine verl too, or leave it out"
            )


def unused_of_preset(preset: str | None, config: TrainRun) -> str | None:
    """One sentence where sections of the preset belong to its made model, and the configuration has another one."""
    if preset is None or config.model.path == MADE:
        return None
    layer = read_toml(presets_folder() / f"{preset}.toml")
    unused = [name for name in _MADE_SECTIONS if layer != _without_made_parts(layer, [name])]
    if not unused:
        return None
    named = " and ".join(f"[{name}]" for name in unused)
    stays = "; reward.verifier = 'exact' stays, which reads #ANSWER" if config.reward.verifier == "exact" else ""
    return (
        f"what the preset {preset} says in {named} is for its made model and left out with model.path ="
        f" '{config.model.path}'{stays}"
    )


def _without_made_parts(layer: dict[str, Any], sections: Sequence[str] = _MADE_SECTIONS) -> dict[str, Any]:
    """A preset without the sections that only its made model has; as it is where its model is not made."""
    if layer.get("model", {}).get("path") != MADE:
        return layer
    model = {key: value for key, value in layer["model"].items() if f"model.{key}" not in sections}
    return {key: value for key, value in layer.items() if key not in sections} | {"model": model}


def _last_named(layers: Sequence[tuple[Mapping[str, Any], str]], section: str, key: str, default: Any = None) -> Any:
    """The value of a key in the last layer that has it."""
    tables = [layer.get(section) for layer, _ in layers]
    values = [table[key] for table in tables if isinstance(table, Mapping) and key in table]
    return values[-1] if values else default


def _of_objective(layer: Mapping[str, Any], name: Any, origin: str) -> dict[str, Any]:
    """What a layer's `[for_objective.NAME]` says, as an `[objective]` section; every name in it must be one."""
    tables = layer.get(FOR_OBJECTIVE, {})
    if not isinstance(tables, Mapping) or not all(isinstance(table, Mapping) for table in tables.values()):
        raise UsageError(
            f"{origin}: {FOR_OBJECTIVE} holds one table for each objective, written [{FOR_OBJECTIVE}.gspo]"
        )
    if tables and origin == "--set":
        raise UsageError(f"--set {FOR_OBJECTIVE}...: belongs in a file; for this run set objective.KEY itself")
    for chosen, values in tables.items():
        _check_objective(chosen, f"{origin}: [{FOR_OBJECTIVE}.{chosen}]: ")
        if chosen not in NAMED_OBJECTIVES and isinstance(name, str) and (reason := misnamed(chosen, name)):
            raise UsageError(f'{origin}: [{FOR_OBJECTIVE}."{chosen}"]: {reason}')
        for key in values:
            if key not in FREE_KEYS:
                hint = nearest(key, FREE_KEYS)
                raise UsageError(f"{origin}: [{FOR_OBJECTIVE}.{chosen}]: '{key}' cannot be set here{hint}")
    return {"objective": tables[name]} if isinstance(name, str) and name in tables else {}


def _check_objective(name: str, place: str = "") -> None:
    if name not in NAMED_OBJECTIVES and name != "custom" and not is_own(name):
        known = with_installed((*NAMED_OBJECTIVES, "custom"))
        raise UsageError(f"{place}unknown objective '{name}'{nearest(name, known)}; there are {', '.join(known)}")


def all_keys(model: Any = TrainRun, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of the configuration with its default (None where it must be given)."""
    if is_dataclass(model):
        for entry in fields(model):
            yield f"{prefix}{entry.name}", None if entry.default is MISSING else entry.default
        return
    for name, entry in model.model_fields.items():
        kind = entry.annotation
        if isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, BaseModel)):
            yield from all_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", entry.get_default(call_default_factory=True)


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read configuration file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None


def merge(
    into: dict[str, Any],
    origins: dict[str, str],
    layer: Mapping[str, Any],
    origin: str,
    prefix: str = "",
    root: type[BaseModel] = TrainRun,
) -> None:
    """Put `layer` over `into`, table by table, and note where each dotted key came from."""
    for key, value in layer.items():
        dotted = f"{prefix}{key}"
        origins[dotted] = origin
        if isinstance(value, Mapping):
            child = into.setdefault(key, {})
            if not isinstance(child, dict):
                child = into[key] = {}
            merge(child, origins, value, origin, f"{dotted}.")
        elif not prefix and key in root.model_fields:
            raise UsageError(f"{origin}: {key} = {value!r}: a section is a table, written [{key}]")
        else:
            into[key] = value


def parse_set(assignment: str, example: str = "run.steps=100") -> dict[str, Any]:
    """`section.key=value`; the value as TOML where it is TOML (3, 1e-6, true, [1, 2]), else as text."""
    dotted, equals, text = assignment.partition("=")
    parts = dotted.strip().split(".")
    if not equals or len(parts) < 2 or not all(parts):
        raise UsageError(f"--set wants section.key=value, for example --set {example}; got '{assignment}'")
    return nested(dotted.strip(), toml_value(text.strip()))


def toml_value(text: str) -> Any:
    """The value as TOML where it is TOML, else the text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def nested(dotted: str, value: Any) -> dict[str, Any]:
    """`section.key` and a value as the table that holds it."""
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return dict(value)


def validated(root: type[Root], merged: dict[str, Any], origins: Mapping[str, str]) -> Root:
    """The typed configuration; UsageError, one sentence, for the first thing that is wrong with it."""
    try:
        return _validated(root, merged)
    except ValidationError as error:
        raise UsageError(_sentence(error, origins, root)) from None


def _sentence(error: ValidationError, origins: Mapping[str, str], root: type[BaseModel]) -> str:
    # A misspelt key often causes further errors: it is the one to name.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    path = ".".join(str(part) for part in problem["loc"])
    origin = origins.get(path) or next((origins[p] for p in _parents(path) if p in origins), "the configuration")
    more = f" ({len(problems) - 1} more after this)" if len(problems) > 1 else ""
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{origin}: unknown key '{path}'{_nearest_key(path, root)}{more}"
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"]) if "ctx" in problem else problem["msg"]
        return f"{origin}: {message}{more}" if path else f"{message}{more}"
    if problem["type"] == "tuple_type":
        example = json.dumps(list(dict(all_keys()).get(path) or ["..."]))
        return (
            f"{origin}: {path} = {problem['input']!r}: a list belongs here, for example --set '{path}={example}'{more}"
        )
    given = repr(problem["input"])
    message = problem["msg"][:1].lower() + problem["msg"][1:]
    return f"{origin}: {path} = {given}: {message}{more}"


def _parents(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _nearest_key(path: str, root: type[BaseModel]) -> str:
    """The closest valid key: spelt like the whole, or with the same last part in another section."""
    parent, _, last = path.rpartition(".")
    # Of equal names the one in the very section of the path comes last, and counts.
    keys = sorted((key for key, _ in all_keys(root)), key=lambda key: key.rpartition(".")[0] == parent)
    elsewhere = [key for key in keys if key.rpartition(".")[2] == last]
    if elsewhere:
        return f" (did you mean '{elsewhere[0]}'?)"
    section, dot, _ = path.partition(".")
    siblings = {key.rpartition(".")[2]: key for key in keys if key.startswith(f"{section}.")}
    if not dot:
        siblings = {name: name for name in root.model_fields}
    close = difflib.get_close_matches(last, siblings, n=1, cutoff=0.5)
    return f" (did you mean '{siblings[close[0]]}'?)" if close else nearest(path, keys)
