"""Every key changes something: outside the configuration some code reads each of them from its own section.

A name after a dot is not enough: `problems` is in three sections, and one that nothing reads would hide behind the others. So
what stands before the dot must be the section: `config.rollout.problems`, or a name that is annotated with the section's class
or was assigned from the section in the same file.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import luspo_cli
from luspo_cli.config.eval import OPTIONS, EvalRun
from luspo_cli.config.layers import all_keys
from luspo_cli.config.model import ExpertsShapeConfig, ShapeConfig
from luspo_cli.config.run import TrainRun

PACKAGE = Path(luspo_cli.__file__).parent


def sections(model: Any = TrainRun, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every section's dotted name with the name of its class."""
    for name, entry in model.model_fields.items():
        kind = entry.annotation
        if isinstance(kind, type) and (is_dataclass(kind) or hasattr(kind, "model_fields")):
            yield f"{prefix}{name}", kind.__name__
            if not is_dataclass(kind):
                yield from sections(kind, f"{prefix}{name}.")


class Reads:
    """The keys that one file reads, as section.key."""

    def __init__(self, text: str, root: Any = TrainRun) -> None:
        self.by_class = {kind: name for name, kind in sections(root)}
        self.by_last_part = {name.rpartition(".")[2]: name for name, _ in sections(root)}
        self.bound: defaultdict[str, set[str]] = defaultdict(set)  # a name, or .name of an attribute -> sections
        nodes = list(ast.walk(ast.parse(text)))
        for node in nodes:
            if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
                self._bind_annotated(node)
        for node in [*nodes, *nodes]:  # twice: a name may be assigned from another one
            if isinstance(node, ast.Assign):
                self._bind_assigned(node)
        self.keys = {
            f"{section}.{node.attr}"
            for node in nodes
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
            for section in self._sections_of(node.value)
        }

    def _bind_annotated(self, node: ast.arg | ast.AnnAssign) -> None:
        name = node.arg if isinstance(node, ast.arg) else getattr(node.target, "id", "")
        for part in ast.walk(node.annotation or node):
            if isinstance(part, ast.Name) and part.id in self.by_class:
                self.bound[name].add(self.by_class[part.id])
                self.bound[f".{name}"].add(self.by_class[part.id])  # the field of a dataclass

    def _bind_assigned(self, node: ast.Assign) -> None:
        for target in node.targets:
            several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            pairs = zip(target.elts, node.value.elts, strict=True) if several else [(target, node.value)]
            for to, value in pairs:
                if isinstance(to, ast.Name | ast.Attribute):
                    self.bound[_name(to)] |= self._sections_of(value)

    def _sections_of(self, value: ast.expr) -> set[str]:
        if isinstance(value, ast.Attribute) and value.attr in self.by_last_part:
            return {self.by_last_part[value.attr]}
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "model_copy":
            return self._sections_of(value.func.value)
        return self.bound[_name(value)] if isinstance(value, ast.Name | ast.Attribute) else set()


def _name(node: ast.Name | ast.Attribute) -> str:
    return node.id if isinstance(node, ast.Name) else f".{node.attr}"


def keys_read(root: Any = TrainRun, folder: Path = PACKAGE) -> set[str]:
    """Every section.key of `root` that the code in `folder` outside `config/` reads."""
    files = (file for file in folder.rglob("*.py") if file.parent.name != "config")
    return {key for file in files for key in Reads(file.read_text(), root).keys}


def test_every_key_is_read_somewhere() -> None:
    unread = {key for key, _ in all_keys()} - keys_read()
    assert not unread, f"keys that change nothing: {sorted(unread)}"


def test_every_key_of_an_evaluation_is_read_by_the_evaluation() -> None:
    keys = {key for key, _ in all_keys(EvalRun)}
    read = keys_read(EvalRun, PACKAGE / "evaluation")
    assert not keys - read, f"keys that change nothing: {sorted(keys - read)}"
    assert set(OPTIONS.values()) <= keys
    assert len(set(OPTIONS.values())) == len(OPTIONS)


def test_the_search_would_notice_a_dead_key() -> None:
    read = keys_read()
    assert {"update.learning_rate", "rollout.max_response_tokens", "objective.kl_coefficient"} <= read
    assert not {"update.no_such_key", "evaluation.learning_rate", "rollout.checkpoint_every"} & read


def test_a_key_counts_for_its_own_section_alone() -> None:
    text = """
def go(config: TrainRun, reward: RewardConfig | None):
    rollout, seed = config.rollout, config.run.seed
    mine = rollout.model_copy(update={})
    print(mine.problems, reward.workers, other.samples, config.evaluation.every)
"""
    assert Reads(text).keys == {
        "run.seed",
        "rollout.model_copy",
        "rollout.problems",
        "reward.workers",
        "evaluation.every",
    }


def test_every_number_of_the_shape_changes_the_count_of_parameters() -> None:
    base = ShapeConfig()
    changes = {
        "vocabulary": 64, "layers": 3, "width": 192, "heads": 6, "key_value_heads": 1, "feed_forward": 100, "tied_head": True
    }  # fmt: skip
    assert changes.keys() == ShapeConfig.model_fields.keys() - {"vision", "experts"}
    for key, value in changes.items():
        other = ShapeConfig.model_validate({**base.model_dump(), key: value})
        assert other.parameters() != base.parameters(), key


def test_every_number_of_the_experts_but_how_many_compute_a_token_changes_the_count_of_parameters() -> None:
    base = {"number": 4, "feed_forward": 32}
    counts = {
        key: ShapeConfig.model_validate({"experts": base | {key: value}}).parameters()
        for key, value in {
            "number": 5, "feed_forward": 40, "shared_feed_forward": 16, "dense_layers": 1, "per_token": 3
        }.items()
    }  # fmt: skip
    assert counts.keys() == ExpertsShapeConfig.model_fields.keys()
    same = ShapeConfig.model_validate({"experts": base}).parameters()
    assert [key for key, count in counts.items() if count == same] == ["per_token"]
    assert len(set(counts.values())) == len(counts)
