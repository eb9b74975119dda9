"""A configuration that another version stored."""

from __future__ import annotations

from luspo_cli.config.layers import resolve_train
from luspo_cli.config.stored import with_defaults


def test_keys_that_came_later_have_their_defaults() -> None:
    whole = resolve_train(preset="tiny").model_dump(mode="json")
    older = {section: dict(values) for section, values in whole.items()}
    del older["run"]["track"]
    del older["rollout"]["max_sampling_rounds"]
    assert with_defaults(older) == whole
    assert "track" not in older["run"]  # what was given stays as it was


def test_what_is_no_configuration_stays_as_it_is() -> None:
    whole = resolve_train(preset="tiny").model_dump(mode="json")
    for stored in ({"run": {}}, {}, whole | {"telepathy": {}}):
        assert with_defaults(stored) == stored
