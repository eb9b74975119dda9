"""`python -m bench` lists the benchmarks, `python -m bench NAME [options]` runs one; every one has `--help`."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
HELPERS = frozenset({"__main__", "made_images", "results"})


def benchmarks() -> dict[str, str]:
    """Name → the first line of what its module says of itself, without importing it."""
    files = {file.stem: file for file in sorted(FOLDER.glob("*.py")) if file.stem not in HELPERS}
    said = {name: ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) for name, file in files.items()}
    return {name: (text or "").splitlines()[0] for name, text in said.items()}


def main() -> None:
    known = benchmarks()
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        width = max(map(len, known))
        print("\n".join(f"  {name:<{width}}  {line}" for name, line in known.items()))
        return
    name = sys.argv[1].replace("-", "_")
    if name not in known:
        sys.exit(f"bench: there is no benchmark '{sys.argv[1]}'; python -m bench lists them")
    sys.argv = [f"python -m bench {name}", *sys.argv[2:]]
    sys.path.insert(0, str(FOLDER))  # where the modules that several of them share are
    from luspo_cli.errors import RunError, UsageError

    try:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    except (UsageError, RunError) as refused:
        # What luspo says of a setting, a model or data, without where in its code.
        sys.exit(f"bench {name}: {refused}")


if __name__ == "__main__":
    main()
