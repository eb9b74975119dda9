"""vLLM inside this process, on the devices that train: the weights are handed over by reference, through vLLM's own transfer.

- The engine runs in this very process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`), so a push copies each tensor once, into the worker's
  own layout, and nothing passes through a file or a socket.
- The prefix cache is emptied after every push: keys and values of older weights are never read again.
- On CUDA the engine sleeps whenever it does not draw. Level 1 keeps its weights in host memory, so that a second round of a step
  can wake it without a push; the cache is given up entirely. Before a push only the weights are woken. Elsewhere vLLM has no
  sleep, and both calls are left out.
- Prompts and images come ready (`images`): vLLM computes its own pixels only to learn how large an image can be.
- It starts with made-up weights: every user pushes before the first draw, and a push that missed a weight would show at once in
  `sampler/logprob_difference_max` instead of hiding behind the weights of the folder.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from luspo_cli.errors import RunError, UsageError, first_line
from luspo_cli.records import Prompt, Rollout
from luspo_cli.rollout.sampler import OnFinished, SamplingOptions
from luspo_cli.rollout.vllm.images import engine_prompt, prompt_images
from luspo_cli.rollout.vllm.plugin import BACKEND, register
from luspo_cli.rollout.vllm.requests import (
    check_request,
    has_logprobs,
    in_groups,
    logprobs_mode,
    sampling_parameters,
    to_rollout,
    with_texts,
)
from luspo_cli.rollout.vllm.weight_stream import checkpoint_weights

GIB = 2**30
BLOCK_TOKENS = 128
"""Of vLLM's cache on a CPU."""
CPU_CACHE_SHARE = 0.2
"""Of the memory that is free when the engine starts; fewer rows are in flight where the cache would need more."""
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the engine is started."""

    model: str
    """A folder or hub id: architecture, and weights where `load_weights_of_folder`."""
    dtype: Literal["float32", "bfloat16"]
    longest: int
    """Tokens of the longest row, prompt and response."""
    max_rows: int
    temperature: float
    """That most draws will have: it decides for which ones there are log-probs."""
    memory_share: float = 0.4
    eager: bool = False
    seed: int = 0
    revision: str = "main"
    trust_remote_code: bool = False
    load_weights_of_folder: bool = False
    """For a caller that never pushes."""
    never_drawn: tuple[int, ...] = ()
    """A vision model's image tokens."""
    image_pixels: tuple[int, int] | None = None
    """Least and most pixels of an image by the model's processor; None for a model that reads text only."""


class VllmSampler:
    """Samples with a vLLM engine in this process; see `Sampler`."""

    def __init__(self, settings: EngineSettings, tokenizer: Any, end_tokens: Sequence[int]) -> None:
        self.tokenizer, self.end_tokens = tokenizer, tuple(sorted(end_tokens))
        self.settings = settings
        self._mode = logprobs_mode(settings.temperature)
        self._dtype = getattr(torch, settings.dtype)
        self._sleeps = torch.cuda.is_available()
        self._engine = _start(settings, self._mode, sleep=self._sleeps)
        self._pushes = self._requests = 0
        atexit.register(self.close)
        self._awake = {"weights", "kv_cache"}
        self._sleep()

    def load_weights(self, policy: torch.nn.Module) -> None:
        """Copy the policy's weights into the engine and forget all that was computed with the older ones."""
        self._wake("weights")
        engine = self._engine
        engine.start_weight_update()
        engine.update_weights({"update_info": {"weights": checkpoint_weights(policy, self._dtype)}})
        engine.finish_weight_update()
        if not engine.reset_prefix_cache():
            raise RunError("vLLM did not empty its cache after the weights changed: go on with --resume")
        self._pushes += 1

    def sample_groups(
        self,
        prompts: Sequence[Prompt],
        options: SamplingOptions,
        on_progress: Callable[[int], None] | None = None,
        on_finished: OnFinished | None = None,
    ) -> list[list[Rollout]]:
        if not prompts:
            return []
        self._wake("weights", "kv_cache")
        asked = self._ask(prompts, options)
        done: dict[int, Rollout] = {}

        def take(answers: Sequence[tuple[int, Any]]) -> None:
            rollouts = [self._rollout(asked[row // options.group_size], options, answer) for row, answer in answers]
            for (row, _), rollout in zip(answers, with_texts(rollouts, self.tokenizer), strict=True):
                done[row] = rollout
                if on_finished:
                    on_finished(row, rollout)

        rows = len(asked) * options.group_size
        answers = self._answers(rows, on_progress)
        if on_finished:
            for ended in answers:
                take(ended)
            self._sleep()
        else:  # the engine sleeps before its answers are looked at
            late = [answer for ended in answers for answer in ended]
            self._sleep()
            take(late)
        return in_groups([done[row] for row in range(rows)], options.group_size)

    def _rollout(self, prompt: Prompt, options: SamplingOptions, answer: Any) -> Rollout:
        """One answer of vLLM's without its text; RunError where it is not one to this prompt."""
        never, tokens = self.settings.never_drawn, list(answer.outputs[0].token_ids)
        if tuple(answer.prompt_token_ids) != prompt.tokens:
            raise RunError(
                f"vLLM answered another prompt than that of problem '{prompt.problem_id}': use the version of vLLM that luspo"
                " is tested with"
            )
        logprobs = [found[token].logprob for found, token in zip(answer.outputs[0].logprobs, tokens, strict=True)]
        return to_rollout(prompt, tokens, logprobs, self.end_tokens, has_logprobs(options, self._mode, never), never)

    def _ask(self, prompts: Sequence[Prompt], options: SamplingOptions) -> list[Prompt]:
        """Hand vLLM a request a rollout; returns the prompts without their images."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        asked: list[Prompt] = []
        for prompt in prompts:
            check_request(prompt, options, self.settings.longest)
            question = engine_prompt(prompt, prompt_images(prompt, str(self._pushes)))
            for row in range(len(asked) * options.group_size, (len(asked) + 1) * options.group_size):
                values = sampling_parameters(options, row, self.end_tokens, self.settings.never_drawn)
                parameters = SamplingParams(**values, output_kind=RequestOutputKind.FINAL_ONLY)
                self._engine.llm_engine.add_request(str(self._requests + row), question, parameters)
            asked.append(prompt.without_images())
        return asked

    def _answers(self, rows: int, on_progress: Callable[[int], None] | None) -> Iterator[list[tuple[int, Any]]]:
        """vLLM's answers and their rows, as many at a time as end together."""
        engine, first, finished = self._engine.llm_engine, self._requests, 0
        self._requests += rows
        while engine.has_unfinished_requests():
            ended = [(int(answer.request_id) - first, answer) for answer in engine.step() if answer.finished]
            finished += len(ended)
            if on_progress:
                on_progress(finished)
            if ended:
                yield ended

    def close(self) -> None:
        """Give the engine's memory back; vLLM ends torch's process group with it, so this comes last in a process."""
        if self._engine is None:
            return
        self._engine.llm_engine.engine_core.shutdown()
        self._engine = None

    def _wake(self, *parts: str) -> None:
        missing = [part for part in parts if part not in self._awake]
        if self._sleeps and missing:
            torch.cuda.empty_cache()  # what training no longer uses, or the engine's own allocator finds no room
            self._engine.wake_up(tags=missing)
        self._awake |= set(parts)

    def _sleep(self) -> None:
        if self._sleeps:
            self._engine.sleep(level=1)
            self._awake = set()


def _start(settings: EngineSettings, mode: str, *, sleep: bool) -> Any:
    """The engine; UsageError in one sentence where vLLM cannot run this model here."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from vllm import LLM

    register()
    cuda = torch.cuda.is_available()
    options: dict[str, Any] = {
        "model": settings.model,
        "revision": settings.revision,
        "trust_remote_code": settings.trust_remote_code,
        "skip_tokenizer_init": settings.image_pixels is None,
        "dtype": settings.dtype,
        "max_model_len": settings.longest,
        "max_num_seqs": settings.max_rows,
        "logprobs_mode": mode,
        "generation_config": "vllm",  # none of the model's sampling defaults
        "weight_transfer_config": {"backend": BACKEND},
        "load_format": "auto" if settings.load_weights_of_folder else "dummy",
        "enforce_eager": settings.eager or not cuda,
        "seed": settings.seed,
    }
    if settings.image_pixels:
        least, most = settings.image_pixels
        options |= {
            "limit_mm_per_prompt": {"video": 0},
            "mm_processor_kwargs": {"min_pixels": least, "max_pixels": most},
            "mm_device_do_normalize": False,  # our pixels are normalised already
            "mm_processor_cache_gb": 0,
        }
    if cuda:
        options |= {"gpu_memory_utilization": settings.memory_share, "enable_sleep_mode": sleep}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # One engine a rank of a run of several processes: it joins their process group instead of making one.
        options["distributed_executor_backend"] = "external_launcher"
    try:
        if not cuda:
            options["kv_cache_memory_bytes"] = _cpu_cache_bytes(settings)
        with _own_threads_and_randomness():
            return LLM(**options)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        raise UsageError(
            f"vLLM cannot run '{settings.model}' here: {first_line(error)} (rollout.sampler = 'in-process' needs no vLLM)"
        ) from error


@contextlib.contextmanager
def _own_threads_and_randomness() -> Iterator[None]:
    """Undo what vLLM changes in its host process: torch's number of threads, random state, the loader's environment."""
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    preload = os.environ.get("LD_PRELOAD")
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of vLLM about itself
            yield
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        if preload is None:
            os.environ.pop("LD_PRELOAD", None)
        else:
            os.environ["LD_PRELOAD"] = preload


def _cpu_cache_bytes(settings: EngineSettings) -> int:
    """Keys and values of all rows in flight at full length, within a share of the free memory; one row at the least."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        settings.model, revision=settings.revision, trust_remote_code=settings.trust_remote_code
    ).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = 2 * config.num_hidden_layers * heads * width * (2 if settings.dtype == "bfloat16" else 4)
    row = size * BLOCK_TOKENS * (-(-settings.longest // BLOCK_TOKENS) + 1)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(row * 2, min(row * (settings.max_rows + 1), int(free * CPU_CACHE_SHARE)))
