"""How much memory a training takes: estimated by part without importing torch, measured at its end, and said where it ran out.

What is counted are the tensors that the engine makes, from the model's shape and the configuration: weights, gradients,
moments, the copies in the compute type, what a forward pass keeps for the backward pass, a chunk of logits, the in-process
sampler's copy and cache or the share of the device that vLLM takes, and a step's images: one a problem, as large as
`data.max_pixels` or the prompt's limit allows. What is not: the allocator's waste.
`bench/memory.py` sets the estimate against peaks that were measured (docs/experiments.md).
"""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from luspo_cli.config.model import ShapeConfig
from luspo_cli.config.run import TrainRun
from luspo_cli.config.update import UpdateConfig
from luspo_cli.errors import RunError
from luspo_cli.machine import has_cuda, packs_float32
from luspo_cli.rollout.samplers import SamplerName

PROGRAM_BYTES = 0.6 * 2**30
"""The interpreter with torch and transformers on a CPU; a CUDA context takes about as much."""
CHUNK_LOGITS = 2**23
"""Logits of one piece of the vocabulary head (policy/logprobs.py): in the compute type, in float32, and their exponentials."""
MOMENT_BYTES = {"float32": 8.0, "bfloat16": 4.0, "8bit": 2 * (1 + 4 / 256)}
"""Of one weight's two moments; in 8 bits a byte each, and a float32 scale for every block of 256."""
_TRIED = re.compile(r"Tried to allocate ([\d.]+ \w+)")


def trained_parameters(config: TrainRun, shape: ShapeConfig) -> int:
    """Number of weights that the optimizer moves: all of them, those outside a frozen vision tower, or the adapters'."""
    lora = config.model.lora
    if lora.rank:
        return shape.adapter_parameters(lora.rank, lora.targets)
    return shape.decoder_parameters() if config.model.freeze_vision else shape.parameters()


def largest_image_tokens(config: TrainRun, shape: ShapeConfig) -> int:
    """Tokens of the largest image of a prompt; 0 for a model that reads text only."""
    vision = shape.vision
    if not vision.depth:
        return 0
    most = config.data.max_prompt_tokens
    return min(most, config.data.max_pixels // (vision.patch * vision.merge) ** 2) if config.data.max_pixels else most


def tower_moves(config: TrainRun, shape: ShapeConfig) -> bool:
    """Whether there is a vision tower and its weights are trained."""
    return shape.vision.depth > 0 and not config.model.freeze_vision and not config.model.lora.rank


def estimate_memory(
    config: TrainRun,
    shape: ShapeConfig,
    processes: int = 1,
    sampler: SamplerName = "in-process",
    device_bytes: float | None = None,
) -> dict[str, float]:
    """Bytes by part on one device; `update_peak` and `rollout_peak` are sums over the parts in use together.

    With the sampler `vllm` the part `vllm` is its share of a device of `device_bytes`, 0 where that is not known; it sleeps while
    the policy trains. With `vllm-server` nothing of the sampler is on this device.

    With `update.spare_memory` what the sampler holds counts in the rollout alone, and gradients in the update alone (DDP's stay).

    Several processes share out the groups of a batch, and with `model.sharding = "full"` weights, gradients and moments; then
    each has a whole copy to sample with besides, and the weights that a pass has `gathered`.

    `host_optimizer`, where the optimizer is offloaded, and `host_images`, the pixels of a step's problems or what a tower that
    does not move made of them, are in the host's memory and in no sum.
    """
    training = _Training(config, shape, processes, sampler)
    parts = {"program": PROGRAM_BYTES, **_held(training), **_sampling(training, device_bytes), **_in_a_pass(training)}
    always = sum(parts[name] for name in ("program", "weights", "optimizer", "reference", "gathered"))
    waiting = parts["head_gradient"] if shape.tied_head else 0
    at_the_head = parts["activations"] + parts["logits_chunk"] + parts["head_gradient"]
    in_the_layers = parts["activations"] + parts["recomputed_layer"] + waiting
    at_the_embedding = parts["embedding_gradient"] + waiting
    in_the_tower = parts.pop("tower_block")
    in_the_pass = max(at_the_head, in_the_layers, at_the_embedding, in_the_tower) + parts["tower_activations"]
    spare = config.update.spare_memory
    of_sampler = 0 if spare else parts["sampler_copy"]
    parts["update_peak"] = always + parts["gradients"] + of_sampler + parts["autocast_copies"] + in_the_pass
    gradients_stay = not spare or (processes > 1 and not training.sharded)
    held = always + parts["sampler_copy"] + (parts["gradients"] if gradients_stay else 0)
    parts["rollout_peak"] = held + parts["key_value_cache"] + parts.pop("drawn_logits") + parts["vllm"]
    if not training.sharded:
        del parts["gathered"]
    return parts


@dataclass(frozen=True)
class _Training:
    """What several parts of the estimate ask of a training on one device."""

    config: TrainRun
    shape: ShapeConfig
    processes: int
    sampler: SamplerName

    @property
    def adapters(self) -> bool:
        return bool(self.config.model.lora.rank)

    @property
    def low(self) -> bool:
        """Passes are computed in bfloat16."""
        return self.config.model.compute_dtype == "bfloat16"

    @property
    def size(self) -> int:
        """Bytes of one number of a pass."""
        return 2 if self.low else 4

    @property
    def sharded(self) -> bool:
        return self.processes > 1 and self.config.model.sharding == "full"

    @property
    def trained(self) -> int:
        return trained_parameters(self.config, self.shape)

    @property
    def tower(self) -> int:
        """Parameters of the vision tower, which is whole on each process."""
        return self.shape.parameters() - self.shape.decoder_parameters()

    @property
    def table(self) -> int:
        """Parameters of the embedding, and of a head of its own."""
        return self.shape.vocabulary * self.shape.width

    @property
    def outside(self) -> int:
        """Parameters of embedding and head."""
        return self.table * (1 if self.shape.tied_head else 2)

    @property
    def lean(self) -> bool:
        """Layers keep less for the backward pass (policy/lean_layers.py)."""
        checkpointing = self.config.model.gradient_checkpointing
        plain = not (self.adapters or checkpointing or self.shape.experts.number or self.shape.vision.depth)
        return self.config.update.spare_memory and self.low and self.processes == 1 and plain

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.config.data.max_prompt_tokens + self.config.rollout.max_response_tokens

    @property
    def own_problems(self) -> int:
        """Problems of a step that one process samples and trains."""
        return -(-self.config.rollout.problems // self.processes)

    @property
    def tokens_at_once(self) -> int:
        """Tokens of the largest micro-batch: no more than the rows of a mini-batch have, and no fewer than one row."""
        mini_batch = -(-self.own_problems // self.config.update.mini_batches) * self.config.rollout.group_size
        return max(min(self.config.update.tokens_per_micro_batch, mini_batch * self.longest), self.longest)


def _held(training: _Training) -> dict[str, float]:
    """Weights, and what is as large as they are: gradients, moments, the copies of a pass, the reference."""
    config, shape, trained = training.config, training.shape, training.trained
    share = training.processes if training.sharded else 1
    moments = MOMENT_BYTES["8bit" if config.update.optimizer == "adamw-8bit" else config.update.moments]
    offloaded = config.update.offload_optimizer
    whole = 4 * (shape.decoder_parameters() / share + training.tower)
    # Of the layers' weights: the head has a copy of a block at a time, and an embedding none.
    copies = trained if training.adapters else trained - training.outside
    one_layer = (shape.decoder_parameters() - training.outside) / shape.layers
    return {
        "weights": (training.size * shape.parameters() + 4 * trained) if training.adapters else whole,
        "gradients": 4 * trained / share,
        "optimizer": 0 if offloaded else moments * trained / share,
        "host_optimizer": (4 + moments) * trained if offloaded else 0,
        "reference": whole if config.objective.kl_coefficient > 0 and not training.adapters else 0,
        "autocast_copies": 2 * copies / (shape.layers if training.lean else 1) if training.low else 0,
        # One decoder layer, and embeddings and head, which are gathered as long as a pass takes.
        "gathered": 4 * (training.outside + one_layer) if training.sharded else 0,
    }


def _sampling(training: _Training, device_bytes: float | None) -> dict[str, float]:
    """The sampler's weights and cache, or the share of the device that vLLM takes."""
    config, shape, sampler = training.config, training.shape, training.sampler
    vllm = config.rollout.vllm.memory_share * (device_bytes or 0) if sampler == "vllm" else 0
    if sampler != "in-process":
        return {"sampler_copy": 0, "vllm": vllm, "key_value_cache": 0, "drawn_logits": 0}
    n, table = shape.parameters(), training.table
    # The sampler's own bfloat16 weights; an embedding that is frozen in bfloat16 is shared with it, its packed head is not.
    shared = table if training.adapters and not shape.tied_head else 0
    # On a CPU, beside the embedding it is tied to.
    packed_head = table if shape.tied_head and not training.adapters else 0
    copy = 0
    if training.low:
        copy = 2 * (n - shared + packed_head)
    elif training.sharded:
        copy = 4 * n
    elif not has_cuda() and packs_float32(n - training.outside + table):
        copy = 4 * (n + packed_head)
    key_value = 2 * shape.key_value_heads * shape.head_size * training.size
    rows = min(config.rollout.max_rows, training.own_problems * config.rollout.group_size)
    return {
        "sampler_copy": copy,
        "vllm": vllm,
        "key_value_cache": rows * training.longest * shape.layers * key_value,
        "drawn_logits": rows * shape.vocabulary * 8,
    }


def _in_a_pass(training: _Training) -> dict[str, float]:
    """What one forward and backward pass over the largest micro-batch holds."""
    config, shape, size = training.config, training.shape, training.size
    tokens, inner = training.tokens_at_once, _feed_forward(training.shape)
    # Autocast keeps an input in bfloat16 once for each product that reads it.
    one_layer = tokens * ((18 if training.low else 14) * shape.width + 4 * inner) * size
    layer, recomputed = one_layer, 0
    if config.model.gradient_checkpointing:
        layer, recomputed = tokens * shape.width * 4, one_layer
    elif training.lean:
        layer, recomputed = tokens * (11 * shape.width + 2 * inner) * size, tokens * 4 * inner * size
    images = min(training.own_problems, max(1, tokens // training.longest))
    block, kept_of_tower = _tower(config, shape, size, images)
    # Response tokens alone go through the head; text prompts may be short, and one with an image is as long as that at least.
    limit = config.rollout.max_response_tokens
    at_head = tokens * limit / (limit + largest_image_tokens(config, shape))
    # Where gradients are looked for by hooks it adds up beside them; a tied one waits for the embedding's, which comes last.
    found_at_once = config.update.spare_memory and training.processes == 1
    return {
        "activations": shape.layers * layer,
        "recomputed_layer": recomputed,
        "tower_block": block,
        "tower_activations": kept_of_tower,
        "host_images": training.own_problems * _values_of_an_image(config, shape, size),
        "logits_chunk": (8 + size) * min(CHUNK_LOGITS, at_head * shape.vocabulary),
        "head_gradient": 0 if training.adapters or found_at_once else 4 * training.table,
        "embedding_gradient": 0 if training.adapters else 4 * training.table,
    }


def _feed_forward(shape: ShapeConfig) -> int:
    """Width of the feed-forwards that compute one token, in the layers where it is largest."""
    own, dense = shape.experts, shape.feed_forward if shape.dense_layers else 0
    return max(dense, own.per_token * own.feed_forward + own.shared_feed_forward) if own.number else dense


def _tower(config: TrainRun, shape: ShapeConfig, size: int, images: int) -> tuple[float, float]:
    """Bytes of the tower's one block that is computed, and of what a pass over so many images keeps for the backward pass."""
    vision = shape.vision
    patches = largest_image_tokens(config, shape) * vision.merge**2
    one_block = patches * (14 * vision.width + (4 if vision.gated else 2) * vision.feed_forward) * size
    if not tower_moves(config, shape):
        return one_block, 0  # of one image after the other, without a backward pass
    checkpointing = config.model.gradient_checkpointing
    block = images * patches * vision.width * 4 if checkpointing else images * one_block
    ends = patches * (vision.patch_values + 3 * vision.width) * size
    return images * one_block, vision.depth * block + images * ends


def _values_of_an_image(config: TrainRun, shape: ShapeConfig, size: int) -> float:
    """Bytes in which an image is held during a step."""
    tokens, vision = largest_image_tokens(config, shape), shape.vision
    if tower_moves(config, shape):
        return tokens * vision.merge**2 * vision.patch_values * 4
    return tokens * vision.feature_layers * shape.width * (size if config.model.lora.rank else 4)


def peak_memory_gib() -> float:
    """Largest resident size of this process so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


@contextmanager
def shortage_explained() -> Iterator[None]:
    """Within this block torch's OutOfMemoryError becomes a RunError that names the keys to lower."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        tried = _TRIED.search(str(error))
        raise RunError(
            f"the GPU's memory is used up{f' (tried to allocate {tried.group(1)})' if tried else ''}: lower"
            " update.tokens_per_micro_batch, rollout.max_rows or rollout.vllm.memory_share, or set"
            " model.gradient_checkpointing = true, in a new run or in the run's config.json and then --resume --allow-changed;"
            " where another program held the memory, --resume is enough"
        ) from error


def offload_refused(settings: UpdateConfig) -> str | None:
    """Say why the optimizer's state cannot be kept off the GPU here; None where it can, and where nobody asks."""
    if not settings.offload_optimizer or has_cuda():
        return None
    return (
        "update.offload_optimizer needs a GPU: here the optimizer's state is in the host's memory already; leave it out"
    )
