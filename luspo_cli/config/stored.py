"""A stored configuration as this version understands it: keys that came later have their defaults.

A new key's default is what the program did before the key existed; a folder of an older version therefore resumes unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def with_defaults(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """`stored` with the keys that it lacks; unchanged where it is no configuration of this version at all."""
    from pydantic import ValidationError

    from luspo_cli.config.run import TrainRun

    try:
        return TrainRun.model_validate_json(json.dumps(stored)).model_dump(mode="json")
    except ValidationError:
        return stored
