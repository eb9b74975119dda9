"""`actor_rollout_ref.model.external_lib=verl_gloo`: starts the processes' group before verl does, in each of its workers.

verl asks for one backend for the CPU and one for the device. Where the device is the CPU that is "cpu:gloo,cpu:gloo", which torch
refuses (verl/utils/distributed.py, `initialize_global_process_group_ray`); where there is a group already verl takes it.
"""

from __future__ import annotations

import os

import torch

if "RANK" in os.environ and "MASTER_ADDR" in os.environ and not torch.distributed.is_initialized():
    torch.distributed.init_process_group(
        "gloo",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        init_method=os.environ.get("DIST_INIT_METHOD"),
    )
