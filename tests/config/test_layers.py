"""Configuration: presets load, layers win in their order, and everything wrong is one sentence that names where it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luspo_cli.config.layers import all_keys, preset_names, presets_folder, resolve_train, unused_of_preset
from luspo_cli.config.model import ShapeConfig
from luspo_cli.config.objective import NAMED_OBJECTIVES
from luspo_cli.config.run import TrainRun
from luspo_cli.config.warmup import WarmupConfig
from luspo_cli.errors import UsageError
from luspo_cli.training.dry_run import make_plan
from luspo_cli.training.verl.overrides import verl_files
from luspo_cli.training.verl.plan import plan_verl


def refused(sets: list[str] | None = None, text: str | None = None, tmp_path: Path | None = None) -> str:
    """The one sentence with which a configuration is refused."""
    file = None
    if text is not None:
        assert tmp_path is not None
        file = tmp_path / "own.toml"
        file.write_text(text)
    with pytest.raises(UsageError) as caught:
        resolve_train(preset="tiny", sets=sets or [], config_file=file)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert caught.value.exit_code == 2
    return sentence


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("objective", NAMED_OBJECTIVES)
def test_every_preset_takes_every_objective_and_has_a_plan(preset: str, objective: str) -> None:
    for_verl = preset.startswith("qwen3-30b")
    config = resolve_train(preset=preset, objective=objective, sets=["run.engine=verl"] if for_verl else [])
    assert config.verl.required == for_verl
    if for_verl and objective in ("dapo_prompt_mean", "balanced", "length_power"):  # what verl does not carry
        with pytest.raises(
            UsageError, match=r"objective balanced|objective dapo_prompt_mean|objective\.length_exponent"
        ):
            plan_verl(config, verl_files(Path("run")), "run", "auto")
    elif for_verl:
        command = plan_verl(config, verl_files(Path("run")), "run", "auto").command
        assert command.settings["trainer.total_training_steps"] == config.run.steps
    else:
        plan = make_plan(config)
        assert plan.objective["name"] == objective
        assert all(size >= 0 for size in plan.memory_gib.values())
        assert plan.work["optimizer_steps"] == config.run.steps * config.update.mini_batches
    # What is stored reads back as the same configuration: that is how a run is resumed.
    assert TrainRun.model_validate_json(json.dumps(config.model_dump(mode="json"))) == config


def test_presets_are_the_shipped_files() -> None:
    assert {"tiny", "qwen2.5-0.5b", "qwen2.5-7b"} <= set(preset_names())
    assert preset_names() == sorted(path.stem for path in presets_folder().glob("*.toml"))


def test_the_later_layer_wins(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("[objective]\nname = 'gspo'\nclip_low = 0.01\n[run]\nsteps = 7\nseed = 3\n")
    config = resolve_train(preset="tiny", config_file=own, sets=["run.steps=8", "run.steps=9"])
    assert (config.run.steps, config.run.seed, config.rollout.problems) == (9, 3, 16)
    assert (config.objective.name, config.objective.clip_low, config.objective.clip_high) == ("gspo", 0.01, 2.5e-3)
    assert resolve_train(preset="tiny", config_file=own, objective="grpo").objective.name == "grpo"
    assert resolve_train(preset="tiny").objective.name == "luspo"


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("update.learning_rate=2e-5", 2e-5),
        ("update.learning_rate=1", 1.0),
        ("update.learning_rate = 0.5 ", 0.5),
        ("update.betas=[0.8, 0.95]", (0.8, 0.95)),
        ("update.skip_rows_without_advantage=false", False),
        ("update.schedule=linear", "linear"),
        ("update.schedule='linear'", "linear"),
        ('data.train="data/a=b"', "data/a=b"),
        ("data.train=data/a=b", "data/a=b"),
        ("data.held_out=", ""),
        ("data.train=~/my data", "~/my data"),
        ("model.path=Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
    ],
)
def test_set_reads_toml_values_and_bare_text(assignment: str, expected: object) -> None:
    sets = [assignment, "evaluation.every=0"]
    if assignment.startswith("data.train"):
        sets.append("model.path=x/y")
    section, _, key = assignment.split("=")[0].strip().partition(".")
    assert getattr(getattr(resolve_train(preset="tiny", sets=sets), section), key) == expected


@pytest.mark.parametrize("assignment", ["run.steps", "steps=3", "=3", "run.=3", ".steps=3", "", "run..steps=3"])
def test_set_without_section_key_and_value(assignment: str) -> None:
    assert refused([assignment]) == (
        f"--set wants section.key=value, for example --set run.steps=100; got '{assignment}'"
    )


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("rollout.group_sise=8", "--set: unknown key 'rollout.group_sise' (did you mean 'rollout.group_size'?)"),
        ("rolout.group_size=8", "--set: unknown key 'rolout' (did you mean 'rollout'?)"),
        ("update.steps=8", "--set: unknown key 'update.steps' (did you mean 'warmup.steps'?)"),
        ("model.shape.widht=8", "--set: unknown key 'model.shape.widht' (did you mean 'model.shape.width'?)"),
        ("objective.clip_hihg=0.1", "--set: unknown key 'objective.clip_hihg' (did you mean 'objective.clip_high'?)"),
        ("run.steps=ten", "--set: run.steps = 'ten': input should be a valid integer"),
        ("run.steps=3.0", "--set: run.steps = 3.0: input should be a valid integer"),
        ("run.steps=true", "--set: run.steps = True: input should be a valid integer"),
        ("run.steps=0", "--set: run.steps = 0: input should be greater than or equal to 1"),
        ("run.steps.more=1", "--set: run.steps = {'more': 1}: input should be a valid integer"),
        ("update.learning_rate=fast", "--set: update.learning_rate = 'fast': input should be a valid number"),
        ("update.learning_rate=nan", "--set: update.learning_rate = nan: input should be"),
        ("update.schedule=liner", "--set: update.schedule = 'liner': input should be 'constant', 'linear' or 'cosine'"),
        ("model.path=12", "--set: model.path = 12: input should be a valid string"),
        ("update.betas=[0.9]", "--set: update.betas.1 = [0.9]: field required"),
        ("objective.name=luspoo", "--set: unknown objective 'luspoo' (did you mean 'luspo'?): choose one of grpo, "),
        ("objective.ratio=token", "--set: luspo fixes ratio = 'sequence' and cannot take 'token'"),
        ("objective.clip_low=-1", "--set: clip_low = -1.0 must be a positive number"),
        ("objective.clip_low=wide", "--set: objective.clip_low = 'wide': input should be a valid number"),
        ("objective.kl_estimator=k1", "--set: kl_estimator is not read while kl_coefficient is 0"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_place(assignment: str, sentence: str) -> None:
    assert refused([assignment]).startswith(sentence)


def test_the_misspelt_key_is_named_before_what_it_causes() -> None:
    sentence = refused(["run.seeed=1", "run.steps=0"])
    assert sentence == "--set: unknown key 'run.seeed' (did you mean 'run.seed'?) (1 more after this)"


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["update.mini_batches=5"], ["rollout.problems (16)", "multiple of update.mini_batches (5)"]),
        (["model.kernels.decode=graph", "model.shape.experts.number=4"], ["model.kernels.decode", "has experts"]),
        (
            ["model.kernels.decode=graph", "rollout.sampler=vllm"],
            ["model.kernels.decode", "'vllm' draws", "rollout.sampler = 'in-process'"],
        ),
        (["rollout.max_rows=8"], ["rollout.max_rows (8)", "at least rollout.group_size (16)"]),
        (
            ["reward.overlong_buffer=96"],
            ["reward.overlong_buffer (96)", "smaller than rollout.max_response_tokens (96)"],
        ),
        (["reward.format_weight=0.1"], ["reward.format_weight needs reward.format"]),
        (["data.train=data/gsm8k"], ["knows only data.train = 'made:terms'", "set model.path"]),
        (["data.held_out="], ["evaluation.every needs data.held_out"]),
        (["model.shape.width=97"], ["model.shape.width", "multiple of model.shape.heads"]),
        (["model.shape.heads=4", "model.shape.key_value_heads=3"], ["model.shape.heads", "key_value_heads"]),
        (["model.shape.width=99"], ["model.shape.width", "even"]),
    ],
)
def test_impossible_combinations_name_their_keys(sets: list[str], words: list[str]) -> None:
    sentence = refused(sets)
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[run]\nstepz = 3\n", ["own.toml: unknown key 'run.stepz'", "'run.steps'"]),
        ("run = 3\n", ["own.toml", "run = 3"]),
        ("objective = 'luspo'\n", ["own.toml", "objective = 'luspo'"]),
        ("[run\n", ["own.toml is not valid TOML"]),
        ("\x00", ["own.toml is not valid TOML"]),
        ("steps = 3\n", ["own.toml: unknown key 'steps'", "'warmup.steps'"]),
    ],
)
def test_errors_in_a_file_name_the_file(tmp_path: Path, text: str, words: list[str]) -> None:
    sentence = refused(text=text, tmp_path=tmp_path)
    for word in words:
        assert word in sentence


def test_a_section_given_as_a_value_is_refused_under_any_objective(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("objective = 'gspo'\n")
    with pytest.raises(UsageError, match=r"own\.toml: objective = 'gspo'"):
        resolve_train(config_file=own, objective="luspo", sets=["objective.clip_low=0.1"])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes("a = 'ä'".encode("latin-1"))
    for file, words in (
        (tmp_path / "none.toml", "No such file"),
        (tmp_path, "directory"),
        (tmp_path / "latin.toml", "TOML"),
    ):
        with pytest.raises(UsageError, match=words):
            resolve_train(config_file=file)


@pytest.mark.parametrize(
    ("name", "hint"), [("tinny", "did you mean 'tiny'"), ("../tiny", "there are"), ("", "there are")]
)
def test_an_unknown_preset(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"unknown preset '{name}'.*{hint}"):
        resolve_train(preset=name)


def test_an_unknown_objective() -> None:
    with pytest.raises(UsageError, match=r"unknown objective 'lusp' \(did you mean 'luspo'\?\); there are grpo, "):
        resolve_train(preset="tiny", objective="lusp")


def test_a_custom_objective_spells_out_its_parts() -> None:
    assert "objective 'custom' must set advantage" in refused(["objective.name=custom"])
    parts = ["advantage=group_mean", "ratio=sequence", "surrogate=clip", "aggregation=token-mean", "clip_low=0.1"]
    sets = [f"objective.{part}" for part in (*parts, "clip_high=0.2")]
    assert resolve_train(preset="tiny", objective="custom", sets=sets).objective.aggregation == "token-mean"


def test_all_keys_are_those_of_the_stored_configuration() -> None:
    def leaves(value: object, prefix: str = "") -> set[str]:
        if isinstance(value, dict) and value:
            return {
                leaf for key, inner in value.items() for leaf in leaves(inner, f"{prefix}.{key}" if prefix else key)
            }
        return {prefix}

    assert {key for key, _ in all_keys()} == leaves(resolve_train(preset="tiny").model_dump(mode="json"))


@pytest.mark.parametrize(
    ("assignment", "section", "key", "expected"),
    [
        ("run.track=tensorboard", "run", "track", ("tensorboard",)),
        ('run.track=["tensorboard", "wandb"]', "run", "track", ("tensorboard", "wandb")),
        ('run.track="wandb"', "run", "track", ("wandb",)),
        ("run.track=[]", "run", "track", ()),
    ],
)
def test_a_single_name_is_a_list_of_one(assignment: str, section: str, key: str, expected: tuple[str, ...]) -> None:
    run = resolve_train(preset="tiny", sets=[assignment])
    assert getattr(getattr(run, section), key) == expected


def test_a_configuration_file_is_utf_8_whatever_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(io, "text_encoding", lambda encoding, stacklevel=2: encoding or "latin-1")
    file = tmp_path / "own.toml"
    file.write_bytes('[data]\ntrain = "données"\n[model]\npath = "x"\n'.encode())
    assert resolve_train(config_file=file).data.train == "données"


@pytest.mark.parametrize("preset", ["easy-vqa", "tiny-vl"])
def test_what_belongs_to_the_made_model_of_a_preset_is_left_out_with_another_model(preset: str, tmp_path: Path) -> None:
    """The rest of the preset holds, and a warm-up that the user asks for is refused as with any other model."""
    own = resolve_train(preset=preset, sets=["model.path=mine"])
    assert (own.warmup, own.model.shape) == (WarmupConfig(), ShapeConfig())
    made = resolve_train(preset=preset)
    assert made.warmup != WarmupConfig()
    assert own.rollout == made.rollout
    assert own.model.compute_dtype == made.model.compute_dtype == "float32"
    file = tmp_path / "own.toml"
    file.write_text('[model]\npath = "mine"\n')
    assert resolve_train(preset=preset, config_file=file) == own
    for sets in (["model.path=mine", "warmup.rows=3"], ["warmup.rows=3"]):
        with pytest.raises(UsageError, match=r"\[warmup\] is for model.path = 'made' alone"):
            resolve_train(preset=preset, config_file=file, sets=sets)
    file.write_text('[model]\npath = "mine"\n[warmup]\nrows = 3\n')
    with pytest.raises(UsageError, match=r"\[warmup\] is for model.path = 'made' alone"):
        resolve_train(preset=preset, config_file=file)


def test_what_is_left_out_of_a_preset_is_said() -> None:
    own = resolve_train(preset="tiny-vl", sets=["model.path=mine"])
    said = unused_of_preset("tiny-vl", own)
    assert said is not None
    assert said.startswith(
        "what the preset tiny-vl says in [warmup] and [model.shape] is for its made model and left out"
    )
    assert "model.path = 'mine'; reward.verifier = 'exact' stays" in said
    assert unused_of_preset("tiny-vl", resolve_train(preset="tiny-vl")) is None
    published = resolve_train(preset="qwen2.5-0.5b", sets=["model.path=mine"])
    assert (
        unused_of_preset("qwen2.5-0.5b", published) is None
    )  # its shape is the estimate's where no config.json is there
    assert published.model.shape == resolve_train(preset="qwen2.5-0.5b").model.shape
    assert unused_of_preset(None, own) is None
