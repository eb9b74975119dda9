"""Which keys of configurations differ: values as stored, and keys that came with a later version."""

from __future__ import annotations

from luspo_cli.analysis.variants import differing_values
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.stored import flatten


def test_a_key_that_came_later_tells_a_run_apart_only_where_it_is_not_at_its_default() -> None:
    newer = resolve_train(preset="tiny", objective="luspo").model_dump(mode="json")
    update = {key: value for key, value in newer["update"].items() if key != "skip_rows_without_advantage"}
    older = {section: content for section, content in newer.items() if section != "verl"} | {"update": update}
    assert differing_values([older, newer]) == {}
    changed = newer | {"update": newer["update"] | {"skip_rows_without_advantage": False}}
    assert differing_values([older, changed]) == {"update.skip_rows_without_advantage": ["absent", False]}


def test_flattening_keeps_lists_and_empty_tables_as_leaves() -> None:
    assert flatten({"a": {"b": [1, 2], "c": {}}, "d": None}) == {"a.b": [1, 2], "a.c": {}, "d": None}
    assert differing_values([{"a": {"b": 1}}, {"a": {"b": 1.0}}, {"a": {}}]) == {
        "a": ["absent", "absent", {}],
        "a.b": [1, 1.0, "absent"],
    }
