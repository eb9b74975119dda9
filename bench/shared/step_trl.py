"""The child of bench/step.py that trains with TRL's GRPOTrainer, in TRL's own environment; luspo is not imported here.

python bench/shared/step_trl.py SPECIFICATION

The trainer is TRL's own. What is put around it: clocks at the methods that sample and score, and in mode `half` the recorded
responses in the place of those that it drew.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

from shared.child import Phases, say, state_gib
from shared.forced import Spec, forced_reward, last_number, read_recorded, read_spec

VARIANTS: dict[str, dict[str, Any]] = {
    "equal": {"gradient_checkpointing": False, "model_init_kwargs": {"dtype": "float32"}},
    "default": {},
    "bf16": {"gradient_checkpointing": False, "model_init_kwargs": {"dtype": "bfloat16"}},
}
"""`equal`: float32 weights, the same passes, nothing recomputed, as luspo. `default`: TRL's own choice of weights and of
recomputation. `bf16`: weights in bfloat16 too, which halves them and loses steps below their rounding."""


def main() -> None:
    import torch

    spec = read_spec(sys.argv[1])
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    phases = Phases()
    lengths: list[int] = []
    pay = forced_reward(spec["mode"])
    size = spec["group_size"]

    def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        if pay:
            return [pay(i // size, i % size) for i in range(len(completions))]
        texts = [turns[0]["content"] for turns in completions]
        return [float(last_number(text) == gold) for text, gold in zip(texts, answer, strict=True)]

    class Ends(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            phases.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            phases.step_done()

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=spec["model"],
            reward_funcs=reward,
            args=arguments(spec, folder),
            train_dataset=dataset(spec),
            callbacks=[Ends()],
        )
        draw = trainer._generate_single_turn
        recorded = read_recorded(spec) if spec["mode"] == "half" else None

        def drawn(prompts: list[Any], *rest: Any) -> Any:
            found, logprobs = draw(prompts, *rest)
            if recorded is not None:
                groups, recorded[:] = recorded[: len(prompts) // size], recorded[len(prompts) // size :]
                found = [tokens for group in groups for tokens in group]
            lengths.append(sum(map(len, found)))
            return found, logprobs

        trainer._generate_single_turn = drawn
        phases.watch(trainer, "_generate_single_turn", "rollout")
        phases.watch(trainer, "_calculate_rewards", "reward")
        trainer.train()
        measured = lengths[spec["warm_up"] :]
        say(
            phases.summary(spec["warm_up"])
            | {
                "response tokens": sum(measured) / len(measured),
                "rows trained": spec["problems_a_step"] * size,
                "state GiB": state_gib(trainer.model.parameters(), trainer.optimizer),
            }
        )


def arguments(spec: Spec, folder: str) -> Any:
    """TRL's settings: the same batch, lengths, clip range and learning rate; the rest is its own default."""
    import torch
    from trl import GRPOConfig

    rows = spec["problems_a_step"] * spec["group_size"]
    if rows % spec["micro_rows"]:
        sys.exit(f"{rows} rows a step do not divide into micro-batches of {spec['micro_rows']}")
    generation = {"min_new_tokens": spec["tokens"]} if spec["mode"] == "mixed" else None
    return GRPOConfig(
        output_dir=os.path.join(folder, "out"),
        loss_type="luspo",
        importance_sampling_level="sequence",
        epsilon=spec["clip"][0],
        epsilon_high=spec["clip"][1],
        beta=0.0,
        per_device_train_batch_size=spec["micro_rows"],
        gradient_accumulation_steps=rows // spec["micro_rows"],
        num_generations=spec["group_size"],
        max_completion_length=spec["tokens"],
        temperature=1.0,
        generation_kwargs=generation,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        max_steps=spec["steps"],
        shuffle_dataset=False,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        report_to=[],
        bf16=spec["passes"] == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        **VARIANTS[spec["variant"]],
    )


def dataset(spec: Spec) -> Any:
    """The problems in their order."""
    from datasets import Dataset

    rows = [{"prompt": problem["prompt"], "answer": problem["answer"]} for problem in spec["problems"]]
    return Dataset.from_list(rows)


if __name__ == "__main__":
    main()
