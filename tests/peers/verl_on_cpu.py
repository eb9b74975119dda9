"""verl on a machine without an accelerator, through verl's own extension point for hardware: a platform.

`VERL_USE_EXTERNAL_MODULES=verl_on_cpu VERL_PLATFORM=cpu VERL_ENGINE_DEVICE=cuda` in every process of verl. No function of verl is
replaced: the engine that runs is its FSDP engine as it is registered for CUDA. What has no meaning here does nothing, and memory
of the device is 0.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

CPU = torch.device("cpu")


def nothing(*_: Any) -> None:
    """What a device would do."""


DEVICE = SimpleNamespace(
    is_available=lambda: False,
    current_device=lambda: CPU,
    get_device_name=lambda *_: "cpu",
    set_device=nothing,
    synchronize=nothing,
    empty_cache=nothing,
    manual_seed=torch.manual_seed,
    manual_seed_all=torch.manual_seed,
    get_rng_state=torch.get_rng_state,
    set_rng_state=torch.set_rng_state,
    memory_allocated=lambda *_: 0,
    memory_reserved=lambda *_: 0,
    max_memory_allocated=lambda *_: 0,
    max_memory_reserved=lambda *_: 0,
    mem_get_info=lambda *_: (0, 0),
)
"""In the place of `torch.cuda`."""


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    """One processor as verl's device; Ray is told of it as a GPU, for verl counts GPUs and NPUs alone."""

    device_name = vendor_name = "cpu"
    device_module = DEVICE

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        return CPU  # an index would be a CUDA device's where verl hands it to `Tensor.to`

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        nothing()

    synchronize = set_allocator_settings = empty_cache = profiler_start = profiler_stop = nothing

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "VERL_ON_CPU_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None


if "vllm" in sys.modules:
    # Its kernels for the CPU keep a packed copy of a weight and drop the weight, and verl's pushes write into the weight.
    import vllm._custom_ops

    vllm._custom_ops._supports_onednn = False
