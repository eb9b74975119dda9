"""The batch most tests of the objectives run on, at three distances from the old policy."""

from __future__ import annotations

import pytest
from loop_oracle import Batch
from ragged_batches import make_batch


@pytest.fixture(params=[0.001, 0.05, 0.5], ids=["near", "middle", "far"])
def batch(request: pytest.FixtureRequest) -> Batch:
    """Five rows of unequal length; how far the policy has moved decides which clips act."""
    return make_batch(7, [3, 1, 9, 5, 2], request.param)
