"""A small Qwen2 model made and warmed up on the spot, so that RLVR can be seen with no download and no GPU.

Cached by everything it depends on. Two processes that want the same model wait for one another: one makes it, the other reads
it. The warm-up ends early, at an accuracy where most groups have right and wrong answers; gates on the result keep a run from
starting where no conclusion could be drawn (docs/experiments.md).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from luspo_cli.config.run import TrainRun
from luspo_cli.errors import RunError
from luspo_cli.files import lock, replacing_folder, said_in_one_sentence, write_json
from luspo_cli.policy import attention
from luspo_cli.policy.inputs import prompt_tokens
from luspo_cli.records import Problem, Prompt, Rollout
from luspo_cli.rewards.exact import score_exact
from luspo_cli.rollout.in_process.sampler import InProcessSampler
from luspo_cli.rollout.sampler import SamplingOptions
from luspo_cli.training.made import terms

RECIPE = 3
"""Raise when the warm-up or the task changes, so that no cached model of the old recipe is taken."""
GATE_PROBLEMS, GATE_GROUP = 64, 16
"""A check samples 1,024 responses: the standard error of a correlation is then 0.03, of an accuracy 0.02 or less."""
FIRST_CHECK = 0.8
"""Of the curriculum: earlier the model has not seen the longest prompts."""
CURRICULUM = 0.4
LEAST_LEARNING_RATE = 0.05

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """`$LUSPO_CACHE`, else `~/.cache/luspo`."""
    return Path(os.environ.get("LUSPO_CACHE", "~/.cache/luspo")).expanduser()


def made_model(config: TrainRun) -> Path:
    """The folder of the warmed-up model for this configuration and seed, made now if it is not cached.

    Raises RunError where the model misses a gate and `warmup.gate` is on; the model stays cached for inspection.
    """
    wanted = {
        "recipe": RECIPE,
        "shape": config.model.shape.model_dump(),
        "warmup": config.warmup.model_dump(exclude={"gate"}),
        "profile": config.data.profile,
        "seed": config.run.seed,
        "response_limit": config.rollout.max_response_tokens,
    }
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "made" / key
    with said_in_one_sentence(
        f"the made model in {folder.parent}", "or set LUSPO_CACHE to a folder that can be written and has space"
    ):
        folder.parent.mkdir(parents=True, exist_ok=True)
        held = lock(folder.parent / f"{key}.lock", wait=True)
        try:
            if not (folder / "warmup.json").is_file():
                threads = torch.get_num_threads()
                # Sums in another order would make another model, and the cache must not depend on that.
                torch.set_num_threads(1)
                try:
                    _make(config, wanted, folder)
                finally:
                    torch.set_num_threads(threads)
        finally:
            os.close(held)
    report = json.loads((folder / "warmup.json").read_text())["result"]
    missed = missed_gates(report, config)
    if missed and config.warmup.gate:
        raise RunError(
            f"the made model of seed {config.run.seed} is not fit to draw conclusions from: {'; '.join(missed)};"
            " take another run.seed, or set warmup.gate=false"
        )
    for gate in missed:
        logger.warning(f"the made model misses a gate: {gate}")
    return folder


def missed_gates(report: dict[str, float], config: TrainRun) -> list[str]:
    """The gates (tiny-model probe: docs/experiments.md) that the warm-up's result does not pass, in words."""
    gates, missed = config.warmup, []
    if not gates.min_accuracy <= report["accuracy"] <= gates.max_accuracy:
        missed.append(f"accuracy {report['accuracy']:.2f} is outside {gates.min_accuracy} to {gates.max_accuracy}")
    if report["mixed_fraction"] < gates.min_mixed_fraction:
        missed.append(f"only {report['mixed_fraction']:.0%} of groups are mixed, {gates.min_mixed_fraction:.0%} wanted")
    if config.data.profile == "neutral":
        if abs(report["length_correlation"]) > gates.max_length_correlation:
            missed.append(f"length and being right correlate at {report['length_correlation']:.2f} within prompts")
        if report["length_spread"] < gates.min_length_spread:
            missed.append(f"length spread {report['length_spread']:.2f} is below {gates.min_length_spread}")
    return missed


def made_tokenizer(vocabulary: int) -> Any:
    """A character tokenizer as an ordinary Hugging Face one; its chat template is the bare text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<end>": 1} | {character: i + 2 for i, character in enumerate(terms.CHARACTERS)}
    if len(words) > vocabulary:
        raise RunError(f"model.shape.vocabulary ({vocabulary}) must be at least {len(words)} for the made task")
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return tokenizer


def _new_model(config: TrainRun) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = config.model.shape
    attention.register()
    torch.manual_seed(config.run.seed)
    model_config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.tied_head,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model_config._attn_implementation = attention.NAME
    return Qwen2ForCausalLM(model_config)


def _make(config: TrainRun, wanted: dict[str, Any], folder: Path) -> None:
    logger.info(f"warming up a model of {config.model.shape.parameters():,} parameters (seed {config.run.seed}), once")
    model, tokenizer = _new_model(config), made_tokenizer(config.model.shape.vocabulary)
    result = _warm_up(model, tokenizer, config)
    logger.info(
        f"warm-up done after {result['steps']} steps: accuracy {result['accuracy']:.2f}, mean length {result['length_mean']:.1f},"
        f" {result['mixed_fraction']:.0%} of groups mixed"
    )
    with replacing_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        write_json(partial / "warmup.json", {"made_from": wanted, "result": result})


def _warm_up(model: Any, tokenizer: Any, config: TrainRun) -> dict[str, float]:
    """Supervised training on demonstrations, response tokens only, until a check passes every gate; returns that check."""
    settings, profile = config.warmup, config.data.profile
    steps = settings.steps or terms.WARM_UP_STEPS[profile]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    generator = random.Random(f"luspo warm-up {profile} {config.run.seed}")
    curriculum = max(1, int(CURRICULUM * steps))
    model.train()
    found: dict[str, float] = {}
    for step in range(steps):
        for parameters in optimizer.param_groups:
            parameters["lr"] = settings.learning_rate * _warm_up_factor(step, steps, settings.ramp_steps)
        most_terms = 2 + int(7 * min(1.0, (step + 1) / curriculum))
        tokens, targets = _demonstrations(tokenizer, profile, generator, settings.rows, most_terms)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=tokens, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        is_answer = (tokens == tokenizer.convert_tokens_to_ids("#")).flatten()
        weights = torch.where(is_answer, settings.answer_weight, 1.0) * (targets.flatten() != -100)
        loss = (weights * losses).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        last = step + 1 == steps
        if last or (step + 1 >= FIRST_CHECK * curriculum and (step + 1) % settings.check_every == 0):
            found = _measure(model, tokenizer, config, f"check {step}") | {"steps": step + 1}
            missed = missed_gates(found, config)
            logger.info(
                f"warm-up step {step + 1}: sampled accuracy {found['accuracy']:.2f}; {'; '.join(missed) or 'fit to start'}"
            )
            if found["accuracy"] >= settings.stop_accuracy and not missed:
                break
    return found


def _warm_up_factor(step: int, steps: int, ramp: int) -> float:
    """Linear ramp, then cosine down to 5 %."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / max(1, ramp)) * (LEAST_LEARNING_RATE + (1 - LEAST_LEARNING_RATE) * cosine)


def _demonstrations(
    tokenizer: Any, profile: str, generator: random.Random, rows: int, most_terms: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B, W] and next-token targets [B, W], -100 on prompt and padding."""
    pairs: list[tuple[list[int], int]] = []
    for _ in range(rows):
        problem = terms.make_problem(profile, generator, "", most_terms)
        prompt = list(prompt_tokens(problem, tokenizer))
        response = [*tokenizer.encode(terms.demonstration(problem, profile, generator)), tokenizer.eos_token_id]
        pairs.append((prompt + response, len(prompt)))
    width = max(len(tokens) for tokens, _ in pairs)
    tokens, targets = torch.zeros(rows, width, dtype=torch.long), torch.full((rows, width), -100)
    for i, (row, prompt_length) in enumerate(pairs):
        tokens[i, : len(row)] = torch.tensor(row)
        targets[i, prompt_length - 1 : len(row) - 1] = torch.tensor(row[prompt_length:])
    return tokens, targets


def _measure(model: Any, tokenizer: Any, config: TrainRun, draw: str) -> dict[str, float]:
    """Sampled accuracy, mixed groups, truncation and the length statistics of the gates; `draw` names a sample of its own."""
    sampler = InProcessSampler(model, tokenizer, [tokenizer.eos_token_id], max_rows=1024)
    generator = random.Random(f"luspo {draw} {config.data.profile} {config.run.seed}")
    made = [terms.make_problem(config.data.profile, generator, str(i)) for i in range(GATE_PROBLEMS)]
    prompts = [Prompt(problem.id, prompt_tokens(problem, tokenizer)) for problem in made]
    options = SamplingOptions(GATE_GROUP, config.rollout.max_response_tokens, seed=generator.getrandbits(62))
    groups = sampler.sample_groups(prompts, options)
    right = [[_is_right(problem, rollout) for rollout in row] for problem, row in zip(made, groups, strict=True)]
    lengths = [[rollout.response_length for rollout in row] for row in groups]
    flat = [length for row in lengths for length in row]
    return {
        "accuracy": statistics.fmean(good for row in right for good in row),
        "mixed_fraction": statistics.fmean(0 < sum(row) < len(row) for row in right),
        "truncated_fraction": statistics.fmean(rollout.truncated for row in groups for rollout in row),
        "length_mean": statistics.fmean(flat),
        "length_spread": statistics.pstdev(flat) / statistics.fmean(flat),
        "length_correlation": within_group_correlation(lengths, right),
    }


def _is_right(problem: Problem, rollout: Rollout) -> bool:
    return score_exact(rollout.response, problem.answer, ended=not rollout.truncated).correct


def within_group_correlation(lengths: Sequence[Sequence[int]], right: Sequence[Sequence[bool]]) -> float:
    """Pearson correlation of length and being right after both are centred in their group; 0 where either is constant."""
    x = [n - statistics.fmean(row) for row in lengths for n in row]
    y = [r - statistics.fmean(row) for row in right for r in row]
    norm = math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / norm if norm else 0.0
