"""A file with another trainer's settings → its keys and values: YAML, JSON, lines of key=value, or a shell script with them.

Whose they are is told by the keys: verl's are dotted or nested below its sections, TRL's are the plain ones of `GRPOConfig`.
"""

from __future__ import annotations

import ast
import json
import operator
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from luspo_cli.config.other_trainers.loss import PeerLoss
from luspo_cli.config.other_trainers.trl import trl_loss
from luspo_cli.config.other_trainers.trl_keys import LOSS_KEYS, OTHER_KEYS
from luspo_cli.config.other_trainers.verl import KEYS, SECTIONS, verl_loss
from luspo_cli.config.stored import flatten
from luspo_cli.errors import UsageError

_OVERRIDE = re.compile(r"^[(\"']*[+~]{0,2}([A-Za-z_][\w/@-]*(?:\.[\w/@-]+)*)=(.*)$", re.DOTALL)
_ASSIGNMENT = re.compile(r"^(?:export\s+)?([A-Za-z_]\w*)=(.*)$")
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)(?::?-([^}]*))?\}|\$([A-Za-z_]\w*)")
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.floordiv}


def read_peer_loss(path: Path) -> PeerLoss:
    """The loss of the settings in `path`; UsageError where they are no settings of TRL's GRPO or of verl."""
    try:
        settings, notes = _settings(path)
    except RecursionError:
        raise UsageError(f"{path} has a table that holds itself, or too many of them in one another") from None
    dotted = [key for key in settings if key.split(".")[0] in SECTIONS and "." in key]
    plain = [key for key in settings if key in LOSS_KEYS or key in OTHER_KEYS]
    if dotted and plain:
        raise UsageError(
            f"{path} has keys of verl ({dotted[0]}) and of TRL ({plain[0]}): put the settings of each into a file of its own"
        )
    if dotted:
        loss = verl_loss(settings, str(path))
        return replace(loss, warnings=(*notes, *loss.warnings))
    if plain:
        return trl_loss(settings, str(path))
    raise UsageError(
        f"{path} has no setting of TRL's GRPOConfig (loss_type, epsilon, ...) or of verl (actor_rollout_ref...., algorithm....):"
        " give a YAML or JSON file, lines of key=value, or a shell script with verl's overrides"
    )


def _settings(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The settings, and what is to be known of how they were found."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not text: give a YAML or JSON file, or a script") from None
    suffix = path.suffix.lower()
    if suffix == ".json":
        try:
            return _table(json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, path)), path)
        except json.JSONDecodeError as error:
            raise UsageError(f"{path} is not valid JSON: {error}") from None
    if suffix in (".yaml", ".yml"):
        return _table(_yaml(text, path), path)
    return _script(text, path)


def _yaml(text: str, path: Path) -> Any:
    import yaml

    try:
        _keys_once(yaml.compose(text, yaml.SafeLoader), path)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def _keys_once(root: Any, path: Path) -> None:
    """UsageError where a table of a composed YAML file gives a key twice, of which a loader keeps the last in silence."""
    left, seen = [root], set()
    while left:
        node = left.pop()
        if node is None or isinstance(node.value, str) or id(node) in seen:  # an alias is the node that it names
            continue
        seen.add(id(node))
        if node.id == "mapping":
            _once([(str(key.value), None) for key, _ in node.value if key.value != "<<"], path)
        left += [entry[1] if isinstance(entry, tuple) else entry for entry in node.value]


def _once(pairs: Sequence[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """The pairs as a table; UsageError for a key that is there twice."""
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise UsageError(f"{path} gives {key} twice: leave one of them out")
        table[key] = value
    return table


def _table(content: Any, path: Path) -> tuple[dict[str, Any], list[str]]:
    """The content under dotted keys; a list of key=value is a list of overrides."""
    if isinstance(content, list) and all(isinstance(word, str) for word in content):
        return _overrides(content)
    if not isinstance(content, Mapping):
        raise UsageError(f"{path} holds no table of settings")
    # A key may be written with its dots, and below a section without them.
    leaves = [leaf for key, value in content.items() for leaf in flatten({key: value}).items()]
    return _once(leaves, path), []


def _script(text: str, path: Path) -> tuple[dict[str, Any], list[str]]:
    """Overrides in a script or in lines, with the script's own variables put in; and what is set more than once."""
    variables: dict[str, str] = {}
    changed: set[str] = set()
    words: list[tuple[str, str]] = []
    for line in _commands(text):
        try:
            parts = shlex.split(line)
        except ValueError:  # a quote that goes on in the next line
            parts = line.split()
        for part in parts:
            filled = _filled(part, variables)
            found = _ASSIGNMENT.match(part)
            # A line that goes on with a command sets the variable for that command alone.
            if found and (parts[0] == "export" or len(parts) == 1):
                value = _filled(found[2], variables)
                changed |= {found[1]} if variables.get(found[1], value) != value else set()
                variables[found[1]] = value
            words.append((part, filled))
    settings, notes = _overrides([filled for _, filled in words])
    flags = (word for word, _ in words if word.startswith("--"))
    flag = next((word for word in flags if word[2:].partition("=")[0].replace("-", "_") in LOSS_KEYS), None)
    if flag and not any("." in key for key in settings):
        raise UsageError(
            f"{path} has {flag.partition('=')[0]}: flags of TRL's command line are not read; give its settings as YAML, as in the"
            " file that its --config takes"
        )
    for part, filled in words:
        key = filled.lstrip("+~").partition("=")[0]
        names = sorted({match[1] or match[3] for match in _VARIABLE.finditer(part)} & changed)
        if key in KEYS and key in settings and names:
            notes.append(
                f"{key}: the script sets {', '.join(names)} more than once, and {settings[key]} is what is read here"
            )
    return settings, notes


def _commands(text: str) -> list[str]:
    """The lines without comments, those that go on in the next one joined, sums and products without blanks."""
    lines = (line if _in_quotes(line) else re.sub(r"(^|\s)#.*$", "", line) for line in text.splitlines())
    joined = re.sub(r"\\[ \t]*\n", " ", "\n".join(lines))
    return re.sub(r"\$\(\(.*?\){2,}", lambda match: "".join(match[0].split()), joined).splitlines()


def _in_quotes(line: str) -> bool:
    """Whether the first # of a line stands inside quotes."""
    before = line.partition("#")[0]
    return before.count("'") % 2 == 1 or before.count('"') % 2 == 1


def _overrides(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Key and value of each word that is one, the last one of a key; beside dotted keys a script's other words are none."""
    found: dict[str, Any] = {}
    notes: list[str] = []
    for word in words:
        if (override := _OVERRIDE.match(word)) and not override[1].isupper():
            key, value = override[1], override[2].rstrip(")").strip("\"'")
            if key in KEYS and found.get(key, value) != value:
                notes.append(f"{key} is set more than once: {found[key]}, then {value}, which is read")
            found[key] = value
    if any("." in key for key in found):
        return {key: value for key, value in found.items() if "." in key or key in SECTIONS}, notes
    return found, notes


def _filled(text: str, variables: Mapping[str, str]) -> str:
    """The text with known variables, and with sums and products of whole numbers worked out."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[3]
        if name in variables:
            return variables[name]
        return match[2] if match[2] is not None else match[0]

    filled = _VARIABLE.sub(value, text)
    return re.sub(r"\$\(\(.*?\){2,}", lambda match: _worked_out(match[0], variables), filled)


def _worked_out(text: str, variables: Mapping[str, str]) -> str:
    expression = re.sub(r"[A-Za-z_]\w*", lambda name: variables.get(name[0], name[0]), text[3:-2])
    try:
        return str(_number(ast.parse(expression, mode="eval").body))
    except (SyntaxError, ValueError, ZeroDivisionError):
        return text


def _number(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return int(_OPERATORS[type(node.op)](_number(node.left), _number(node.right)))
    raise ValueError("no sum or product of whole numbers")
