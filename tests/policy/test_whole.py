"""Models that are not whole, tokenizers that do not fit, other kinds of models: refused by file headers and by loading."""

from __future__ import annotations

import io
import json
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from doubles.models import byte_tokenizer, random_qwen2, save
from luspo_cli.config.model import ModelConfig
from luspo_cli.errors import UsageError
from luspo_cli.policy import reading
from luspo_cli.policy.loading import load_model, load_without_weights
from luspo_cli.policy.reading import read_files
from luspo_cli.training.dry_run import unfit_model

Weights = dict[str, torch.Tensor]
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = byte_tokenizer()
    return save(tmp_path / "m", random_qwen2(len(tokenizer), layers=2, end=tokenizer.eos_token_id), tokenizer)


def change_weights(folder: Path, change: Callable[[Weights], Weights]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def change_config(folder: Path, **entries: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def told_of(folder: Path | str) -> str | None:
    """What the dry run says of the model."""
    return unfit_model(ModelConfig(path=str(folder)), {})


def refused(folder: Path) -> tuple[str | None, str]:
    """What the files alone tell, and what loading says without having looked at them."""
    told = told_of(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "broken_weights", lambda *_: None)
        with pytest.raises(UsageError) as caught:
            load_model(ModelConfig(path=str(folder)))
    return told, str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: {f"module.{name}": value for name, value in w.items()}, r"27 weights \(first: lm_head.weight\).*`module.`"),
        (lambda w: {name: value for name, value in w.items() if name != DOWN}, rf"lacks 1 weight \({DOWN}\)"),
        (lambda w: {name: value for name, value in w.items() if name != "lm_head.weight"}, r"lacks 1 weight \(lm_head.weight\)"),
        (lambda w: {name: value for name, value in w.items() if "norm" not in name}, "lacks 5 weights"),
        (lambda w: w | {DOWN: w[DOWN][:, :5].clone()}, rf"has 1 weight \({DOWN}\) of another shape"),
        (lambda w: w | {DOWN.replace(".1.", ".2."): w[DOWN].clone()}, r"hold 1 weight \(model.layers.2.*no place"),
        (lambda w: w | {"model.layers.0.mlp.up_proj.bias": torch.zeros(48)}, r"hold 1 weight \(.*up_proj.bias"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named_by_the_headers_and_by_loading(
    folder: Path, change: Callable[[Weights], Weights], sentence: str
) -> None:
    change_weights(folder, change)
    told, said = refused(folder)
    assert told is not None
    assert re.search(sentence, told)
    assert told == said


@pytest.mark.parametrize(
    "extra",
    ["model.layers.0.self_attn.rotary_emb.inv_freq", "v_head.summary.weight", "model.layers.0.attn.masked_bias"],
)
def test_what_no_model_of_this_kind_computes_with_does_no_harm(folder: Path, extra: str) -> None:
    change_weights(folder, lambda w: w | {extra: torch.ones(8)})
    assert told_of(folder) is None
    assert load_model(ModelConfig(path=str(folder))).end_tokens


@pytest.mark.parametrize("with_head", [False, True])
def test_a_tied_model_is_whole_with_and_without_its_head(tmp_path: Path, with_head: bool) -> None:
    tokenizer = byte_tokenizer()
    folder = save(tmp_path, random_qwen2(len(tokenizer), tied=True, end=tokenizer.eos_token_id), tokenizer)
    if with_head:
        change_weights(folder, lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"].clone()})
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) is with_head
    assert told_of(folder) is None
    assert load_model(ModelConfig(path=str(folder))).end_tokens


def test_a_part_of_several_that_is_not_there(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    model = random_qwen2(len(tokenizer), layers=2, end=tokenizer.eos_token_id)
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    tokenizer.save_pretrained(tmp_path)
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(parts) > 1
    assert told_of(tmp_path) is None
    parts[-1].unlink()
    assert "lacks" in str(told_of(tmp_path))


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen3"])
def test_the_names_and_shapes_of_plain_decoders_are_transformers_own(tmp_path: Path, family: str) -> None:
    import transformers

    tokenizer = byte_tokenizer()
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 6,
    }
    more = {"sliding_window": None} if family == "Mistral" else {"attention_bias": True}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer), num_key_value_heads=2, tie_word_embeddings=False, **sizes, **more
    )
    folder = save(tmp_path, getattr(transformers, f"{family}ForCausalLM")(config), tokenizer)
    assert told_of(folder) is None
    change_weights(folder, lambda w: {name: value for name, value in w.items() if name != DOWN})
    assert "lacks 1 weight (model.layers.1.mlp.down_proj.weight)" in str(told_of(folder))


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"are quantised \(gptq\)"),
        ({"quantization_config": {"load_in_4bit": True}}, r"are quantised \(an unnamed method\)"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "is an encoder-decoder model"),
        (
            {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
            "is a BertForMaskedLM, which does not write text",
        ),
        ({"model_type": "bert", "architectures": ["BertLMHeadModel"]}, "of type bert, an encoder"),
        ({"model_type": "vit"}, "is no causal language model"),
        ({"model_type": "falcon"}, "of type falcon, whose attention cannot be replaced"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "is a GPT2LMHeadModel, which keeps its layers"),
        ({"model_type": "nowhere"}, "of type nowhere, which the installed transformers does not know"),
        ({"model_type": None}, "names no model_type"),
        (
            {"model_type": "gemma3", "vision_config": {"a": 1}},
            "is a vision model of type gemma3; supported are qwen2_5_vl",
        ),
        ({"final_logit_softcapping": 30.0}, "computes with final_logit_softcapping = 30.0"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "has layers of type linear_attention"),
    ],
)
def test_a_configuration_of_a_model_that_is_not_supported(folder: Path, entries: dict[str, Any], sentence: str) -> None:
    change_config(folder, **entries)
    with pytest.raises(UsageError, match=sentence) as caught:
        load_model(ModelConfig(path=str(folder)))
    assert told_of(folder) == str(caught.value)


def test_a_configuration_that_is_no_object(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")
    assert "config.json does not hold one JSON object" in str(told_of(folder))


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(UsageError, match=r"has no tokenizer: there is no tokenizer\.json"):
        load_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"model": {"vocab": 3}}'])
def test_a_tokenizer_file_that_is_none(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UsageError, match=r"its tokenizer\.json is no whole tokenizer"):
        load_model(ModelConfig(path=str(folder)))


def test_a_tokenizer_may_have_fewer_tokens_than_the_model_and_not_more(tmp_path: Path) -> None:
    """259 tokens: the bytes and three further ones."""
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == 259
    for rows, fits in ((320, True), (259, True), (258, False)):
        folder = save(tmp_path / str(rows), random_qwen2(rows, end=1), tokenizer)
        found = told_of(folder)
        assert (found is None) is fits
        assert fits or "has 259 tokens and the model 258 embeddings" in str(found)


def test_a_relative_path_names_the_folder_it_is_looked_for_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"'../models/x' is not a folder in {tmp_path}, which it is relative to" in str(told_of("../models/x"))


def test_a_head_that_gets_other_states_than_the_layers_give_is_refused(tmp_path: Path) -> None:
    """MiniCPM3 divides its hidden states by hidden_size / dim_model_base."""
    from transformers import MiniCPM3Config, MiniCPM3ForCausalLM

    tokenizer = byte_tokenizer()
    latent = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    for base, fits in ((32, True), (8, False)):
        config = MiniCPM3Config(
            vocab_size=len(tokenizer), num_key_value_heads=4, eos_token_id=1, dim_model_base=base, **sizes, **latent
        )
        folder = save(tmp_path / str(base), MiniCPM3ForCausalLM(config), tokenizer)
        if fits:
            assert load_model(ModelConfig(path=str(folder))).end_tokens
        else:
            with pytest.raises(UsageError, match="changes its hidden states or logits around the vocabulary head"):
                load_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("config.json", {"pad_token_id": 9999}, r"config\.json cannot be read with pad_token_id = 9999"),
        ("config.json", {"dtype": "float99"}, 'config.json cannot be read with dtype = "float99"'),
        ("config.json", {"rope_parameters": "linear"}, 'config.json cannot be read with rope_parameters = "linear"'),
        ("config.json", {"num_hidden_layers": None}, r"config\.json cannot be read.*num_hidden_layers.*None"),
        ("config.json", {"eos_token_id": "x"}, 'config.json cannot be read with eos_token_id = "x"'),
        ("config.json", {"hidden_act": "x"}, 'config.json cannot be read with hidden_act = "x"'),
        ("config.json", {"quantization_config": {}}, r"are quantised \(an unnamed method\)"),
        ("config.json", {"quantization_config": "x"}, r"are quantised \(an unnamed method\)"),
        ("config.json", {"text_config": "x"}, 'config.json cannot be read with text_config = "x"'),
        ("config.json", {"vision_config": "x"}, 'config.json cannot be read with vision_config = "x"'),
        ("config.json", {"num_attention_heads": 0}, "config.json cannot be read with num_attention_heads = 0"),
        ("config.json", {"rms_norm_eps": math.nan}, "config.json of model .* has rms_norm_eps = nan"),
        ("config.json", {"rms_norm_eps": -1e-6}, "config.json of model .* has rms_norm_eps = -1e-06"),
        ("config.json", {"rope_theta": 0.0, "rope_parameters": None}, "config.json of model .* has rope_theta = 0.0"),
        ("config.json", {"rope_parameters": {"rope_type": "default", "rope_theta": -1.0}}, "has rope_theta = -1.0"),
        ("config.json", {"initializer_range": math.inf}, "config.json of model .* has initializer_range = inf"),
        ("config.json", "[]", r"config\.json does not hold one JSON object"),
        ("tokenizer_config.json", "[]", r"tokenizer_config\.json does not hold one JSON object"),
        ("tokenizer_config.json", '"x"', r"tokenizer_config\.json does not hold one JSON object"),
        ("tokenizer_config.json", {"pad_token": 3}, "tokenizer cannot be read with pad_token = 3"),
        ("generation_config.json", "{", r"generation_config\.json does not hold one JSON object"),
        ("generation_config.json", {"eos_token_id": "x"}, "eos_token_id = 'x' in the model's files is no token's number"),
        ("chat_template.jinja", "a\n{{ messages[0 }}", "chat template of model .* is broken at its line 2"),
    ],
)  # fmt: skip
def test_an_odd_file_is_one_sentence_that_the_dry_run_says_too(
    folder: Path, file: str, content: str | dict[str, Any], sentence: str
) -> None:
    stored = json.loads((folder / file).read_text()) | content if isinstance(content, dict) else content
    (folder / file).write_text(stored if isinstance(stored, str) else json.dumps(stored))
    for load in (load_model, load_without_weights):
        with pytest.raises(UsageError, match=sentence) as caught:
            load(ModelConfig(path=str(folder)))
        assert "\n" not in str(caught.value)
        assert str(caught.value) == told_of(folder)


def test_an_end_token_beyond_the_vocabulary_would_never_be_drawn(folder: Path) -> None:
    for file in ("config.json", "generation_config.json"):
        stored = json.loads((folder / file).read_text()) | {"eos_token_id": 5000}
        (folder / file).write_text(json.dumps(stored))
    with pytest.raises(UsageError, match=r"end-of-sequence token of model '.*', 5000, is none of its 259"):
        load_model(ModelConfig(path=str(folder)))  # the tokenizer's own is there, and the other one is still a fault
    stored = json.loads((folder / "tokenizer_config.json").read_text()) | {"eos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(stored))
    with pytest.raises(UsageError, match=r"end-of-sequence token of model '.*', 5000, is none of its 259"):
        load_model(ModelConfig(path=str(folder)))


def test_a_fault_outside_of_what_the_library_reads_keeps_its_traceback(folder: Path) -> None:
    def broken(*_: Any) -> None:
        raise AttributeError("ours")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "unsupported", broken)
        with pytest.raises(AttributeError, match="ours"):
            load_model(ModelConfig(path=str(folder)))


def test_what_the_library_logs_is_heard_once_beside_a_model_and_not_beside_a_refusal(folder: Path) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger("transformers").addHandler(handler)
    try:
        change_config(folder, bos_token_id=5000)
        read_files(ModelConfig(path=str(folder)), str(folder), {})
        assert stream.getvalue().count("got 5000") == 1
        change_config(folder, pad_token_id=9999)
        assert "pad_token_id = 9999" in str(told_of(folder))
        assert len(stream.getvalue().splitlines()) == 1
    finally:
        logging.getLogger("transformers").removeHandler(handler)


@pytest.mark.parametrize("same", [True, False])
def test_a_head_beside_a_tied_embedding_must_be_its_copy(tmp_path: Path, same: bool) -> None:
    tokenizer = byte_tokenizer()
    folder = save(tmp_path, random_qwen2(len(tokenizer), tied=True, end=tokenizer.eos_token_id), tokenizer)
    change_weights(folder, lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"] + (0 if same else 1)})
    if same:
        assert told_of(folder) is None
        head = load_model(ModelConfig(path=str(folder))).model
        assert head.lm_head.weight is head.model.embed_tokens.weight
        return
    for load in (load_model, load_without_weights):
        with pytest.raises(UsageError, match=r"hold an lm_head\.weight that is not the embedding") as caught:
            load(ModelConfig(path=str(folder)))
        assert str(caught.value) == told_of(folder)
    change_config(folder, tie_word_embeddings=False)
    assert load_model(ModelConfig(path=str(folder))).end_tokens


def test_an_argument_that_the_chat_template_does_not_read_is_known_to_the_dry_run(folder: Path) -> None:
    assert unfit_model(ModelConfig(path=str(folder)), {"add_generation_prompt": True}) is None
    said = unfit_model(ModelConfig(path=str(folder)), {"enable_thinking": False})
    assert "rollout.chat_template sets enable_thinking" in str(said)


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"has no weights: there is no \*\.safetensors") as caught:
        load_model(ModelConfig(path=str(folder)))
    assert str(caught.value) == told_of(folder)
