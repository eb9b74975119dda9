"""Where each token of a response lies in its text, so that numbers of tokens can be shown on the words they belong to.

The tokenizer is the one stored with the run's newest checkpoint, or in the folder of the model that it started from; nothing is
fetched. What the pieces add up to is compared with the stored response: where they differ the response gets no places, since
numbers on the wrong words are worse than none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luspo_cli.analysis.history import RunHistory
from luspo_cli.runs.checkpoints import find_checkpoints, policy_folder

TOKENIZER = "tokenizer.json"
_INCOMPLETE = "\ufffd"
"""What a decoder writes for bytes that are no whole character yet."""


class TokenTexts:
    """Lengths of the texts of tokens under one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._alone: dict[int, str] = {}

    def lengths(self, tokens: Sequence[int], text: str) -> list[int] | None:
        """Length of each token's text in UTF-16 units, as JavaScript counts; None where they do not make up `text`."""
        pieces = [self._piece(token) for token in tokens]
        if "".join(pieces) != text:
            pieces = self._one_by_one(tokens)
            if "".join(pieces) != text:
                return None
        return [len(piece) if piece.isascii() else len(piece.encode("utf-16-le")) // 2 for piece in pieces]

    def _piece(self, token: int) -> str:
        if token not in self._alone:
            self._alone[token] = self._decode([token])
        return self._alone[token]

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def _one_by_one(self, tokens: Sequence[int]) -> list[str]:
        """What each token adds to the text of the tokens just before it.

        A token alone may lose the space in front of it, or be part of a character: then the character is its last token's.
        """
        pieces: list[str] = []
        start = read = 0
        before = ""
        for place in range(len(tokens)):
            now = self._decode(tokens[start : place + 1])
            if now.endswith(_INCOMPLETE) and place + 1 < len(tokens):
                pieces.append("")
                continue
            pieces.append(now[len(before) :])
            start, read = read, place + 1
            before = self._decode(tokens[start:read])
        return pieces


def find_tokenizer(run: RunHistory) -> TokenTexts | None:
    """The tokenizer of the run's newest checkpoint, or of the local folder it started from; None where there is none."""
    from tokenizers import Tokenizer

    path = run.setting("model", "path")
    folders = [policy_folder(found.path) for found in reversed(find_checkpoints(run.path / "checkpoints"))]
    folders += [Path(path)] if isinstance(path, str) else []
    for folder in folders:
        if (folder / TOKENIZER).is_file():
            try:
                return TokenTexts(Tokenizer.from_file(str(folder / TOKENIZER)))
            except Exception:  # tokenizers raises plain Exception; an unreadable file is as good as none
                continue
    return None
