"""Whether a model folder is whole: every weight that its configuration asks for, of the right shape, and a tokenizer that fits.

Told from file headers alone, without torch, so the dry run knows it too. Names and shapes are known here for the plain decoders
(`PLAIN`); of other types only what holds for all of them is checked, and loading finds the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Shapes = dict[str, tuple[int, ...]]
PLAIN = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose weights are those of `_decoder_shapes`."""
INDEX = "model.safetensors.index.json"
TOKENIZERS = (
    "tokenizer.json",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.txt",
    "tekken.json",
    "*.tiktoken",
)
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")
"""What data-parallel and compiled models put before every name."""
_OF_THE_MODEL = re.compile(r"(^|\.)(layers\.\d+\.(.*\.)?|norm\.|embed_tokens\.|lm_head\.)(weight|bias)$")
"""Names of weights that change what a model computes; other names are buffers, or heads for another use of the model."""


def unfit_weights(
    path: str, missing: Iterable[str], unexpected: Iterable[str], other_shapes: Iterable[str]
) -> str | None:
    """One sentence on weights that do not fit the configuration, with their number and the first name; None where all do.

    Of `unexpected` names, in the files and not in the model, only those count that would change what the model computes.
    """
    lacking, spare, reshaped = sorted(missing), sorted(unexpected), sorted(other_shapes)
    if lacking:
        hint = "take a complete copy; what is not there would be made up at random"
        wrapped = next((prefix for prefix in _WRAPPERS for name in spare if name.startswith(prefix)), None)
        if wrapped:
            hint = f"the names in the files begin with `{wrapped}`: save the model from inside its wrapper"
        return f"model '{path}' lacks {_weights(lacking)}; {hint}"
    if reshaped:
        return (
            f"model '{path}' has {_weights(reshaped)} of another shape than its config.json says; take config.json and weights"
            " from one copy"
        )
    if further := [name for name in spare if _OF_THE_MODEL.search(name)]:
        return (
            f"the files of model '{path}' hold {_weights(further)} that its config.json has no place for; take config.json and"
            " weights from one copy"
        )
    return None


def _weights(names: list[str]) -> str:
    return f"1 weight ({names[0]})" if len(names) == 1 else f"{len(names)} weights (first: {names[0]})"


def unfit_tokenizer(path: str, tokens: int, embeddings: int) -> str | None:
    """One sentence where the tokenizer numbers more tokens than the model has embeddings; the other way round is normal."""
    if tokens <= embeddings:
        return None
    return (
        f"the tokenizer of model '{path}' has {tokens} tokens and the model {embeddings} embeddings; take the tokenizer that"
        " belongs to it, or resize the model (resize_token_embeddings) and save it"
    )


def broken_weights(folder: Path, config: Mapping[str, Any], path: str) -> str | None:
    """What `unfit_weights` says of the safetensors files in `folder`, as far as their headers and the configuration tell."""
    try:
        found = {name: shape for file in sorted(folder.glob("*.safetensors")) for name, shape in _header(file).items()}
        absent = _indexed(folder) - found.keys()
        expected = _decoder_shapes(config) if config.get("model_type") in PLAIN else {}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None  # loading says what is wrong with the file
    if not found:
        return None
    if all(name.startswith(_WRAPPERS) for name in found):
        return unfit_weights(path, [name.partition(".")[2] for name in found], found, ())
    if not expected:
        return unfit_weights(path, absent, (), ())
    if not any(name.startswith("model.") for name in found):  # saved without the head; transformers adds the prefix
        found = {f"model.{name}": shape for name, shape in found.items()}
    spare = found.keys() - expected.keys() - ({"lm_head.weight"} if config.get("tie_word_embeddings") else set())
    reshaped = [name for name, shape in expected.items() if found.get(name, shape) != shape]
    return unfit_weights(path, absent | (expected.keys() - found.keys()), spare, reshaped)


def broken_tokenizer(folder: Path, config: Mapping[str, Any], path: str) -> str | None:
    """One sentence where there is no tokenizer in `folder`, its file is none, or it has more tokens than the configuration."""
    if not any(file for name in TOKENIZERS for file in folder.glob(name)):
        return (
            f"model '{path}' has no tokenizer: there is no tokenizer.json or other vocabulary in its folder; copy the"
            " tokenizer's files into it"
        )
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        stored = json.loads(file.read_bytes())
        vocabulary = stored["model"]["vocab"]
        numbers = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        tokens = 1 + max([*numbers, *(added["id"] for added in stored.get("added_tokens") or ())], default=-1)
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return f"cannot load model '{path}': its tokenizer.json is no whole tokenizer; take a complete copy"
    embeddings = (config.get("text_config") or config).get("vocab_size")
    return unfit_tokenizer(path, tokens, embeddings) if isinstance(embeddings, int) else None


def _header(file: Path) -> Shapes:
    """Names and shapes in a safetensors file, whose first 8 bytes are the length of the JSON header after them."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > 100_000_000:
            raise ValueError(f"{file} has no safetensors header")
        stored = json.loads(stream.read(length))
    return {name: tuple(entry["shape"]) for name, entry in stored.items() if name != "__metadata__"}


def _indexed(folder: Path) -> set[str]:
    """The names that the index of a model in several files lists."""
    file = folder / INDEX
    return set(json.loads(file.read_bytes())["weight_map"]) if file.is_file() else set()


def _decoder_shapes(config: Mapping[str, Any]) -> Shapes:
    """Names and shapes of a plain decoder's weights; raises KeyError where the configuration does not say."""
    kind, width, heads = config["model_type"], config["hidden_size"], config["num_attention_heads"]
    head, inner = config.get("head_dim") or width // heads, config["intermediate_size"]
    queries, keys = heads * head, (config.get("num_key_value_heads") or heads) * head
    matrices = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    biased = [name for name in matrices if config.get("attention_bias" if "attn" in name else "mlp_bias")]
    if kind == "qwen2":
        biased = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    vectors = {"input_layernorm": width, "post_attention_layernorm": width}
    if kind == "qwen3":
        vectors |= {"self_attn.q_norm": head, "self_attn.k_norm": head}
    layer: Shapes = {f"{name}.weight": shape for name, shape in matrices.items()}
    layer |= {f"{name}.bias": matrices[name][:1] for name in biased}
    layer |= {f"{name}.weight": (size,) for name, size in vectors.items()}
    table = (config["vocab_size"], width)
    shapes: Shapes = {"model.embed_tokens.weight": table, "model.norm.weight": (width,)}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = table
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes
