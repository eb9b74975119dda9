"""verl's own values of the keys that we read its loss from: `make test-peers`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from luspo_cli.config.other_trainers.verl import KEYS
from luspo_cli.config.stored import flatten

pytestmark = pytest.mark.verl


def test_values_are_those_of_its_own_configuration() -> None:
    spec = find_spec("verl")
    if spec is None or spec.origin is None:
        pytest.skip("needs verl in another environment: make peers")
    yaml = pytest.importorskip("yaml")
    file = Path(spec.origin).parent / "trainer" / "config" / "_generated_ppo_trainer.yaml"
    own = flatten(yaml.safe_load(file.read_text(encoding="utf-8")))
    for key, value in KEYS.items():
        assert own[key] == value, key
