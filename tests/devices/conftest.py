"""The device of a test: every body here runs on the CPU in the default suite, and on a CUDA device with `make test-gpu`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "rollout/vllm"))  # for vllm_models


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Any:
    """Products of matrices differ in their last bits between the two: what passes through them is compared within a tolerance."""
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)
