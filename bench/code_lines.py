"""Code lines by room: lines that hold code, without blank lines, comments and docstrings.

    python -m bench.code_lines [TREE]

TREE is a checkout; this one where it is left out. A line counts when a token other than a comment or a docstring stands on
it, so the figure says how much a reader has to follow; prose does not make a room look large.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(text: str) -> int:
    """Number of lines of Python source `text` that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        # A string that stands alone is prose: a docstring of a module, class, function or field.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def by_room(tree: Path) -> Counter[str]:
    """Code lines of each folder of luspo_cli; modules beside the folders count as `(top)`."""
    package = tree / "luspo_cli"
    rooms: Counter[str] = Counter()
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).parts
        rooms["(top)" if len(parts) == 1 else "/".join(parts[:-1])] += code_lines(file.read_text(encoding="utf-8"))
    return rooms


def main() -> None:
    rooms = by_room(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1])
    for room, lines in sorted(rooms.items()):
        print(f"{room:28}{lines:7}")
    print(f"{'all':28}{sum(rooms.values()):7}")


if __name__ == "__main__":
    main()
