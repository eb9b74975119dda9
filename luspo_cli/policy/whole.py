"""Whether a model folder is whole: every weight that its configuration asks for, of the right shape, and a tokenizer that fits.

Told from file headers alone, so the dry run knows it too. The names in the files are those of the model for the plain decoders
(`PLAIN`) and, with a name for each expert, for models of experts; of other types only what holds for all of them is checked, and
loading finds the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from luspo_cli.policy.experts import published
from luspo_cli.policy.supported import EXPERT_MODELS

Shapes = dict[str, tuple[int, ...]]
PLAIN = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose weights are stored under the names that they have in the model."""
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


def broken_weights(folder: Path, model: Any, tied: bool, path: str) -> str | None:
    """What `unfit_weights` says of the safetensors files in `folder`, from their headers; and where embedding and head are one
    matrix, one sentence if the files hold another head: an equal copy is fine.

    `model` needs no numbers. Raises the library's errors for a file that is not whole.
    """
    from safetensors import safe_open

    found: Shapes = {}
    tables: dict[str, tuple[Path, str]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118  # it is no mapping
                found[name] = tuple(stored.get_slice(name).get_shape())
                if tied and name.endswith(("embed_tokens.weight", "lm_head.weight")) and ".layers." not in name:
                    tables[name.split(".")[-2]] = file, name
    absent = _indexed(folder) - found.keys()
    if found and all(name.startswith(_WRAPPERS) for name in found):
        return unfit_weights(path, [name.partition(".")[2] for name in found], found, ())
    if model.config.model_type in (*PLAIN, *EXPERT_MODELS):
        expected = {
            name: tuple(weight.shape)
            for fused, tensor in model.state_dict().items()
            for name, weight in published(fused, tensor)
        }
        if not any(name.startswith("model.") for name in found):  # saved without the head; transformers adds the prefix
            found = {f"model.{name}": shape for name, shape in found.items()}
        head = {"lm_head.weight"} if tied else set()
        reshaped = [name for name, shape in expected.items() if found.get(name, shape) != shape]
        reason = unfit_weights(
            path, absent | (expected.keys() - found.keys() - head), found.keys() - expected.keys(), reshaped
        )
    else:
        reason = unfit_weights(path, absent, (), ())
    if reason or len(tables) < 2:
        return reason
    values = []
    for file, name in tables.values():  # read only here: most files hold the embedding alone
        with safe_open(file, framework="pt") as stored:
            values.append(stored.get_tensor(name))
    if bool((values[0] == values[1]).all()):
        return None
    return (
        f"the files of model '{path}' hold an lm_head.weight that is not the embedding, and its config.json says that both"
        " are one matrix: set tie_word_embeddings = false there, or take config.json and weights from one copy"
    )


def broken_tokenizer(folder: Path, embeddings: int, path: str) -> str | None:
    """One sentence where there is no tokenizer in `folder`, its file is none, or it has more tokens than the model embeddings."""
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
    return unfit_tokenizer(path, tokens, embeddings)


def _indexed(folder: Path) -> set[str]:
    """The names that the index of a model in several files lists."""
    file = folder / INDEX
    return set(json.loads(file.read_bytes())["weight_map"]) if file.is_file() else set()
