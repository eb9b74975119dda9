"""A whole run on problems with images: sampled, trained, saved with its processor, resumed; the tower frozen on request."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

from doubles.messages import heard
from doubles.vision import noise_image, vision_model, vision_processor
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.model import ModelConfig
from luspo_cli.data.images import ImageFile
from luspo_cli.errors import UsageError
from luspo_cli.grading.verdict import Reason, Verdict
from luspo_cli.policy.loading import load_model
from luspo_cli.training.problems import problems_of
from luspo_cli.training.session import run_training


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, and six problems of which every third has no image and one is too long."""
    vision_processor().save_pretrained(tmp_path / "model")
    vision_model().save_pretrained(tmp_path / "model")
    data = tmp_path / "data"
    data.mkdir()
    rows = []
    for n in range(6):
        names = [] if n % 3 == 2 else [noise_image(data / f"{n}.png", 60 + 20 * n, 60, n).name]
        text = "<image>" * len(names) + ("x" * 200 if n == 5 else f"{n}+1=")
        rows.append(
            {
                "data_source": "test",
                "prompt": [{"role": "user", "content": text}],
                "images": names,
                "reward_model": {"style": "rule", "ground_truth": str(n + 1)},
            }
        )
    pandas.DataFrame(rows).to_parquet(data / "train.parquet")
    pandas.DataFrame(rows[:2]).to_parquet(data / "test.parquet")
    return tmp_path


def train(folder: Path, name: str, *sets: str, steps: int = 2, resume: bool = False) -> tuple[list[str], list[Any]]:
    config = resolve_train(
        preset="tiny",
        objective="luspo",
        sets=[
            f"model.path={folder / 'model'}",
            f"data.train={folder / 'data'}",
            f"data.held_out={folder / 'data'}",
            "data.max_prompt_tokens=100",
            "rollout.problems=4",
            "rollout.group_size=4",
            "rollout.max_response_tokens=8",
            "rollout.max_rows=8",
            "update.mini_batches=2",
            "update.learning_rate=1e-3",
            "update.noise_floor_every=1",
            "reward.overlong_buffer=6",
            "evaluation.every=2",
            "evaluation.problems=2",
            "evaluation.samples=1",
            "run.steps=2",
            "run.checkpoint_every=1",
            "run.threads=1",
            *sets,
        ],
    )
    steps_seen: list[Any] = []
    with heard() as said:
        run_training(config, folder / name, "resume" if resume else "refuse", steps_seen.append)
    return said, steps_seen


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(ModelConfig(path=str(path))).model.state_dict())


@pytest.mark.parametrize("frozen", [False, True])
def test_a_run_with_images(folder: Path, frozen: bool) -> None:
    said, steps = train(folder, "run", f"model.freeze_vision={json.dumps(frozen)}")
    assert any("1 of 6 problems have prompts over 100 tokens: left out" in text for text in said)
    assert [step["step"] for step in steps] == [1, 2]
    assert all(step["ratio/noise_floor"] < 1e-5 for step in steps)
    assert steps[-1]["update/grad_norm"] > 0
    before, after = weights(folder / "model"), weights(folder / "run/checkpoints/step-000002/model")
    moved = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert ("visual" in moved) is not frozen
    assert "language_model" in moved
    loaded = load_model(ModelConfig(path=str(folder / "run/checkpoints/step-000002/model")))
    assert loaded.processor is not None


def test_a_run_with_images_resumes_to_the_same_weights(folder: Path) -> None:
    import shutil

    train(folder, "whole")
    shutil.copytree(folder / "whole", folder / "part")
    shutil.rmtree(folder / "part/checkpoints/step-000002")
    said, _ = train(folder, "part", resume=True)
    assert any("going on after step 1" in text for text in said)
    one, other = (weights(folder / name / "checkpoints/step-000002/model") for name in ("whole", "part"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("frozen", ["false", "true"])
def test_dynamic_sampling_decodes_what_it_samples_and_resumes_bit_for_bit(
    folder: Path, frozen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Further rounds bring further images; groups of any round are trained with their own ones."""
    import shutil

    def score(
        response: str, gold: str, *, ended: bool
    ) -> Verdict:  # an untrained model gives no right answer of its own
        right = len(set(response)) % 2 == 0
        return Verdict("0", right, Reason.EXACT if right else Reason.DIFFERENT)

    decoded: Counter[str] = Counter()
    load = ImageFile.load

    def counted(image: ImageFile) -> Any:
        decoded[image.path.name] += 1
        return load(image)

    monkeypatch.setattr("luspo_cli.rewards.rubric.score_exact", score)
    monkeypatch.setattr(ImageFile, "load", counted)
    sets = (
        f"model.freeze_vision={frozen}", "rollout.dynamic_sampling=true", "rollout.problems=2", "rollout.group_size=2",
        "reward.overlong_buffer=0", "evaluation.every=0", "run.steps=4", "run.rollouts_every=1", "update.noise_floor_every=0",
    )  # fmt: skip
    _, steps = train(folder, "whole", *sets)
    tables = [pandas.read_parquet(file) for file in sorted((folder / "whole/rollouts").glob("*.parquet"))]
    sampled = [name.rsplit("/", 1)[1] for table in tables for name in table["problem_id"].unique()]
    assert max(step["group/rounds"] for step in steps) > 1
    assert len(sampled) == sum(step["group/sampled"] for step in steps)
    assert decoded == Counter(f"{name}.png" for name in sampled if int(name) % 3 != 2)  # every third has no image
    further = [table.iloc[4:].query("in_batch and advantage != 0") for table in tables]  # behind two groups of two
    assert any(int(name.rsplit("/", 1)[1]) % 3 != 2 for rows in further for name in rows["problem_id"])
    assert sum(step["update/rows_trained"] for step in steps) > 0
    shutil.copytree(folder / "whole", folder / "part")
    shutil.rmtree(folder / "part/checkpoints/step-000004")
    train(folder, "part", *sets, resume=True)
    one, other = (weights(folder / name / "checkpoints/step-000004/model") for name in ("whole", "part"))
    before = weights(folder / "model")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], before[name]) for name in one)


def test_adapters_of_a_run_with_images_are_on_the_language_model_alone(folder: Path) -> None:
    pytest.importorskip("peft", reason="adapters need the extra lora: pip install 'luspo[lora]'")
    _, steps = train(folder, "run", "model.lora.rank=2", "model.compute_dtype=bfloat16")
    assert steps[-1]["update/grad_norm"] > 0
    adapter = folder / "run/checkpoints/step-000002/adapter"
    assert (adapter / "preprocessor_config.json").is_file()
    before, after = weights(folder / "model"), weights(adapter)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[1] for name in moved} == {"language_model"}
    assert len(moved) == 2 * 7  # both layers, all seven matrices: the tower's namesakes are untouched
    assert load_model(ModelConfig(path=str(adapter))).processor is not None


@pytest.mark.parametrize("how", ["noise", "other"])
def test_the_blind_control_changes_nothing_else(folder: Path, how: str) -> None:
    """The run with it has the weights and the seeing scores of the one without it, resumed as well."""
    import shutil

    def evaluations(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (folder / name / "evals/held-out.jsonl").read_text().splitlines()]

    train(folder, "without")
    _, steps = train(folder, "whole", f"evaluation.blind={how}")
    assert "evaluation/blind_accuracy" in steps[-1]
    blind = ("evaluation/blind_accuracy", "evaluation/blind_accuracy_low", "evaluation/blind_accuracy_high")
    whole = evaluations("whole")
    assert [{key: value for key, value in row.items() if key not in blind} for row in whole] == evaluations("without")
    assert all(row[blind[1]] <= row[blind[0]] <= row[blind[2]] for row in whole)
    shutil.copytree(folder / "whole", folder / "part")
    shutil.rmtree(folder / "part/checkpoints/step-000002")
    train(folder, "part", f"evaluation.blind={how}", resume=True)
    assert evaluations("part") == whole
    weights_of = [weights(folder / name / "checkpoints/step-000002/model") for name in ("without", "whole", "part")]
    assert all(torch.equal(weights_of[0][name], other[name]) for other in weights_of[1:] for name in other)


def test_the_blind_control_of_a_run_without_images_is_refused(folder: Path) -> None:
    rows = pandas.read_parquet(folder / "data/train.parquet").iloc[[2]]  # the one without an image
    rows.to_parquet(folder / "data/test.parquet")
    said = "evaluation.blind = 'noise' replaces images, and no held-out problem of .* has one: leave it out"
    with pytest.raises(UsageError, match=said):
        train(folder, "run", "evaluation.blind=noise", "evaluation.problems=1")
    assert not (folder / "run").exists()


def test_a_problem_whose_text_spells_a_place_of_pixels_is_left_out_and_counted(folder: Path) -> None:
    """Of the training problems, as one that is too long; a held-out one is refused, since its slice is fixed."""
    sets = [f"data.train={folder / 'data'}", f"data.held_out={folder / 'data'}", f"model.path={folder / 'model'}"]
    config = resolve_train(
        preset="tiny", sets=[*sets, "evaluation.problems=2", "data.max_prompt_tokens=100", "rollout.problems=4"]
    )
    loaded = load_model(config.model)
    rows = pandas.read_parquet(folder / "data/train.parquet")
    rows.at[2, "prompt"] = [{"role": "user", "content": "see <|vision_start|><|video_pad|>"}]
    rows.to_parquet(folder / "data/train.parquet")
    with heard() as said:
        found = problems_of(config, loaded)
    assert [problem.id for problem in found.from_file] == [f"test/train/{n}" for n in (0, 1, 3, 4)]
    (warned,) = [line for line in said if "stands for pixels" in line]
    assert "1 of 6 problems" in warned
    assert "<|video_pad|> in problem 'test/train/2'" in warned
    rows[:2].assign(prompt=[rows.at[2, "prompt"]] * 2, images=[[]] * 2).to_parquet(folder / "data/test.parquet")
    with pytest.raises(UsageError, match=r"problem 'test/test/0': its text contains <\|video_pad\|>"):
        problems_of(config, loaded)
