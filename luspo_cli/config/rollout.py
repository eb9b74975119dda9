"""The [rollout] section: how many responses are sampled, and how."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from luspo_cli.config.base import Section

TemplateValue = bool | int | float | str
"""Of an argument of a chat template."""
OWN_ARGUMENTS = ("add_generation_prompt", "continue_final_message", "conversation", "messages", "tokenize", "tools")
"""Arguments of `apply_chat_template` that decide what a prompt is here."""


def _for_the_template(arguments: dict[str, TemplateValue]) -> dict[str, TemplateValue]:
    for name in arguments:
        if not name.isidentifier() or name in OWN_ARGUMENTS or name.startswith(("return_", "chat_template")):
            raise ValueError(f"chat_template sets '{name}', which is not for a chat template to read")
    return arguments


TemplateArguments = Annotated[dict[str, TemplateValue], AfterValidator(_for_the_template)]
"""Arguments for a model's chat template, by name."""


class VllmConfig(Section):
    """How vLLM samples; each key holds for one kind of vLLM sampler and is refused beside the others."""

    memory_share: float = Field(default=0.4, gt=0, lt=1)
    """Share of the GPU's memory for vLLM inside this process: its weights and its cache. It sleeps while the policy trains.
    On a CPU the environment variable VLLM_CPU_KVCACHE_SPACE gives the size of the cache (GiB)."""
    eager: bool = False
    """vLLM inside this process: no compilation and no CUDA graphs, a quicker start and slower tokens. On a CPU always so."""
    servers: tuple[str, ...] = Field(default=(), strict=False)
    """Addresses of vLLM servers, for example http://127.0.0.1:8000; problems are spread over them (docs/engine.md). With several
    processes: servers of its own for each, or a number that divides theirs, and neighbours share one (docs/cluster.md)."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds that one response, or one push of the weights, of a server may take."""

    @field_validator("servers")
    @classmethod
    def _addresses(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        for server in servers:
            if not server.startswith(("http://", "https://")):
                raise ValueError(f"rollout.vllm.servers wants addresses such as http://127.0.0.1:8000, not '{server}'")
        if len(set(servers)) < len(servers):
            raise ValueError(f"rollout.vllm.servers names a server twice: {', '.join(servers)}")
        return servers


class RolloutConfig(Section):
    """Sampling of training responses. Sampling and training use the same temperature."""

    problems: int = Field(default=8, ge=1)
    """Problems a step."""
    group_size: int = Field(default=8, ge=2)
    """Rollouts a problem."""
    max_response_tokens: int = Field(default=512, ge=1)
    """The response limit: a response that reaches it is truncated."""
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """0: off."""
    lag: int = Field(default=0, ge=0, le=1000)
    """A batch sampled at step t trains at step t + lag, under old log-probs of the policy that sampled it; 0: at once. The first
    `lag` steps train nothing, the last `lag` batches are never trained; what waits is part of the checkpoint."""
    dynamic_sampling: bool = False
    """Sample further problems until `problems` groups are mixed, some responses right and some wrong (DAPO, arXiv 2503.14476,
    section 3.2)."""
    max_sampling_rounds: int = Field(default=8, ge=2)
    """With dynamic sampling: rounds a step at most, the first one included; each samples at most `problems` problems."""
    stop_after_steps_without_signal: int = Field(default=3, ge=1)
    """With dynamic sampling: the run stops with a diagnosis after this many steps in a row in which no group had a signal."""
    chat_template: TemplateArguments = Field(default_factory=dict)
    """Arguments for the model's chat template, for example {enable_thinking = false}; in training, in the held-out evaluation
    and in `luspo eval` of the run. One that the template does not read is refused."""
    max_rows: int = Field(default=256, ge=1)
    """Responses in flight in the sampler; a finished row's place goes to the next group."""
    sampler: Literal["auto", "in-process", "vllm", "vllm-server"] = "auto"
    """Who draws: vLLM inside this process, vLLM servers elsewhere, or the loop on the policy's own layers. auto: vLLM where there
    is a CUDA device and vllm is installed, in-process otherwise."""
    vllm: VllmConfig = VllmConfig()

    def faults(self) -> Iterator[str]:
        bounds = ("max_sampling_rounds", "stop_after_steps_without_signal")
        for key in self.changed(*bounds) if not self.dynamic_sampling else ():
            yield f"rollout.{key} needs rollout.dynamic_sampling = true; without it no step has a second round"
        for key in self.vllm.changed(*VllmConfig.model_fields):
            of_server = key in ("servers", "timeout_s")
            if self.sampler not in (("vllm-server",) if of_server else ("auto", "vllm")):
                wanted = "vllm-server" if of_server else "vllm"
                yield f"rollout.vllm.{key} needs rollout.sampler = '{wanted}'; nothing else reads it"
        if self.sampler == "vllm-server" and not self.vllm.servers:
            yield "rollout.sampler = 'vllm-server' needs rollout.vllm.servers: the address of one at least"
