"""Every key changes something: outside the configuration some code reads each of them by its name."""

from __future__ import annotations

import ast
from pathlib import Path

import luspo_cli
from luspo_cli.config.layers import all_keys
from luspo_cli.config.model import ShapeConfig

PACKAGE = Path(luspo_cli.__file__).parent


def attributes_read() -> set[str]:
    """Names after a dot in the package's code outside `config/` (and in the shape's own arithmetic)."""
    found: set[str] = set()
    for file in PACKAGE.rglob("*.py"):
        if file.parent.name == "config":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
    return found


def test_every_key_is_read_somewhere() -> None:
    read = attributes_read()
    unread = {key for key, _ in all_keys() if key.rpartition(".")[2] not in read}
    assert not unread, f"keys that change nothing: {sorted(unread)}"


def test_the_search_would_notice_a_dead_key() -> None:
    assert "no_such_key_anywhere" not in attributes_read()
    assert {"learning_rate", "max_response_tokens", "kl_coefficient"} <= attributes_read()


def test_every_number_of_the_shape_changes_the_count_of_parameters() -> None:
    base = ShapeConfig()
    changes = {
        "vocabulary": 64, "layers": 3, "width": 192, "heads": 6, "key_value_heads": 1, "feed_forward": 100, "tied_head": True
    }  # fmt: skip
    assert changes.keys() == ShapeConfig.model_fields.keys()
    for key, value in changes.items():
        other = ShapeConfig.model_validate({**base.model_dump(), key: value})
        assert other.parameters() != base.parameters(), key
