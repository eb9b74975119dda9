"""Loading: what is refused, in one sentence, and what every loaded model has."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luspo_cli.config.model import ModelConfig
from luspo_cli.data.images import ImageFile
from luspo_cli.errors import UsageError
from luspo_cli.policy.inputs import fitting, prompt_length, prompt_tokens
from luspo_cli.policy.loading import load_model
from luspo_cli.policy.model_files import find_model
from luspo_cli.policy.reading import end_tokens
from luspo_cli.records import Message, Problem


@pytest.fixture
def folder(tmp_path: Path, make_model: Callable[..., Any], made_tokenizer: Any) -> Path:
    make_model().to(torch.bfloat16).save_pretrained(tmp_path)
    made_tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_weights_are_float32_whatever_the_file_holds(folder: Path) -> None:
    loaded = load_model(ModelConfig(path=str(folder)))
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
    assert loaded.end_tokens == (1,)
    assert loaded.model.config._attn_implementation == "luspo"


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/no/such/folder", "is not a folder; set it to a folder with config.json or a hub id"),
        ("./nowhere", "is not a folder"),
        ("word", "is not a folder"),
    ],
)
def test_a_path_that_is_no_model(path: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load_model(ModelConfig(path=path))


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert find_model(str(tmp_path)) == f"model.path '{tmp_path}' has no config.json"
    with pytest.raises(UsageError, match=r"has no config\.json"):
        load_model(ModelConfig(path=str(tmp_path)))


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_file_cut_short(folder: Path, file: str) -> None:
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match="cannot load model") as caught:
        load_model(ModelConfig(path=str(folder)))
    assert "\n" not in str(caught.value)


def test_linear_attention_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"layer_types": ["linear_attention", "full_attention"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="has layers of type linear_attention"):
        load_model(ModelConfig(path=str(folder)))


SMALL = {
    "vocab_size": 26, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
OF_OTHER_SHAPE: dict[str, dict[str, Any]] = {
    "FalconH1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
}


def saved(folder: Path, family: str, tokenizer: Any, **changes: Any) -> ModelConfig:
    """A folder with a tiny random model of one of transformers' families."""
    import transformers

    config = getattr(transformers, f"{family}Config")(**SMALL | OF_OTHER_SHAPE.get(family, {}) | changes)
    name = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    getattr(transformers, name)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelConfig(path=str(folder))


@pytest.mark.parametrize(
    ("family", "changes", "entry"),
    [
        ("Granite", {"logits_scaling": 8.0}, "logits_scaling = 8.0"),
        ("Cohere", {}, "logit_scale = 0.0625"),
        ("Llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        ("Qwen2", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ("FalconH1", {"lm_head_multiplier": 0.5}, "lm_head_multiplier = 0.5"),
    ],
)
def test_a_model_that_alters_its_logits_is_refused(
    tmp_path: Path, made_tokenizer: Any, family: str, changes: dict[str, Any], entry: str
) -> None:
    with pytest.raises(UsageError, match=f"computes with {entry}, which log-probs and rollouts here would leave out"):
        load_model(saved(tmp_path, family, made_tokenizer, **changes))


@pytest.mark.parametrize(
    ("family", "changes"), [("Granite", {}), ("Cohere", {"logit_scale": 1.0, "tie_word_embeddings": False})]
)
def test_a_factor_of_one_alters_nothing(
    tmp_path: Path, made_tokenizer: Any, family: str, changes: dict[str, Any]
) -> None:
    model = load_model(saved(tmp_path, family, made_tokenizer, **changes)).model
    tokens = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        head = model.lm_head(model.model(input_ids=tokens, use_cache=False).last_hidden_state)
        assert torch.equal(head, model(input_ids=tokens, use_cache=False).logits)


def test_a_window_that_a_type_does_not_hand_to_its_attention_is_refused(tmp_path: Path, made_tokenizer: Any) -> None:
    entries = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "sliding_window": 8}
    window = {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}
    with pytest.raises(UsageError, match="uses sliding-window attention, which is computed for the types exaone4,"):
        load_model(saved(tmp_path, "Qwen2Moe", made_tokenizer, **entries, **window))


@pytest.mark.parametrize(
    ("family", "changes"), [("Mistral", {"sliding_window": None}), ("Qwen2", {"sliding_window": 8})]
)
def test_a_window_that_is_off_is_none(
    tmp_path: Path, made_tokenizer: Any, family: str, changes: dict[str, Any]
) -> None:
    assert load_model(saved(tmp_path, family, made_tokenizer, **changes)).end_tokens == (1,)


def test_a_model_that_keeps_its_layers_elsewhere_is_refused(tmp_path: Path, made_tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="is a GPT2LMHeadModel, which keeps its layers under another name"):
        load_model(saved(tmp_path, "GPT2", made_tokenizer))


def test_end_tokens_are_those_of_the_generation_config_and_the_tokenizer(
    make_model: Callable[..., Any], made_tokenizer: Any
) -> None:
    model = make_model()
    model.generation_config.eos_token_id = [7, 3]
    assert end_tokens(model, made_tokenizer) == (1, 3, 7)


def test_a_base_model_without_a_template_reads_the_messages_as_text(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    stored = json.loads((folder / "tokenizer_config.json").read_text())
    stored.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(stored))
    tokenizer = load_model(ModelConfig(path=str(folder))).tokenizer
    problem = Problem("p", (Message("system", "a1"), Message("user", "b2=")), "3", "t")
    text = tokenizer.decode(prompt_tokens(problem, tokenizer)).replace(" ", "")
    assert text.replace("<pad>", "") == "a1b2="


def test_problems_with_a_long_prompt_are_left_out_and_counted(made_tokenizer: Any) -> None:
    problems = [Problem(str(n), (Message("user", "1" * n),), "1", "t") for n in (3, 8, 5)]
    kept, lengths = fitting(problems, lambda problem: prompt_length(problem, made_tokenizer), 5)
    assert [problem.id for problem in kept] == ["3", "5"]
    assert lengths == [3, 5]


def test_a_problem_with_images_is_refused(made_tokenizer: Any) -> None:
    problem = Problem("p7", (Message("user", "<image>1"),), "1", "t", (ImageFile(Path("a.png")),))
    with pytest.raises(UsageError, match="'p7' has images"):
        prompt_tokens(problem, made_tokenizer)


def test_a_template_that_refuses_a_system_turn_is_one_sentence(made_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(made_tokenizer)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ messages[0]['content'] }}"
    )
    user = Message("user", "1")
    assert prompt_tokens(Problem("p1", (user,), "1", "t"), tokenizer) == tuple(made_tokenizer.encode("1"))
    with pytest.raises(UsageError) as caught:
        prompt_length(Problem("p2", (Message("system", "0"), user), "1", "t"), tokenizer)
    assert str(caught.value) == (
        "problem 'p2': the model's chat template refuses its prompt (System role not supported); take another --prompt in"
        " luspo prepare-data or luspo eval, for example boxed-suffix, which has no system turn"
    )


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.pkl"])
def test_weights_that_could_run_code_are_refused_unread(folder: Path, name: str) -> None:
    mark = folder / "it-ran"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Hostile(mark)))
    with pytest.raises(UsageError, match=rf"has its weights in {name} only, which can run code.*safetensors"):
        load_model(ModelConfig(path=str(folder)))
    assert not mark.exists()
    pickle.loads((folder / name).read_bytes())
    assert mark.exists()  # the file is as hostile as it should be


def test_a_pickle_beside_safetensors_is_not_read(folder: Path) -> None:
    mark = folder / "it-ran"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile(mark)))
    assert load_model(ModelConfig(path=str(folder))).end_tokens == (1,)
    assert not mark.exists()


def test_checkpointing_asks_for_no_gradient_of_the_embeddings(folder: Path) -> None:
    model = load_model(ModelConfig(path=str(folder), gradient_checkpointing=True)).model
    assert model.is_gradient_checkpointing
    assert not model.model.embed_tokens._forward_hooks
