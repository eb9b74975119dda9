"""`prepare-data` on as many rows as DAPO-Math-17k has: 17,398 distinct problems, 103 copies of each, made up here.

    python -m bench prepare_text [FOLDER] [--problems 17398] [--copies 103] [--json FILE]

Seconds and peak memory of the command in a process of its own, and how many problems it kept. The source (FOLDER/source.parquet)
stays where a folder is named.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

from results import Results, Values, luspo_costs

WORDS = (
    "prime", "sum", "angle", "triangle", "digit", "factor", "square", "circle", "integer", "root", "even", "largest", "odd",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--problems", type=int, default=17_398)
    parser.add_argument("--copies", type=int, default=103)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = Results("prepare-data", options.json)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        name = f"{options.problems:,} problems x {options.copies}"
        results.measured(name, lambda: _prepare(folder, options.problems, options.copies))
    results.print(("rows", "kept", "seconds", "processor", "peak MB"), digits=0)


def _prepare(folder: Path, problems: int, copies: int) -> Values:
    source = folder / "source.parquet"
    if not source.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _make(source, problems, copies)
    arguments = ["prepare-data", str(source), "--question-column", "prompt", "--answer-column", "answer"]
    arguments += ["--out", str(folder / "out"), "--if-exists", "replace"]
    costs = luspo_costs(arguments)
    manifest = json.loads((folder / "out/manifest.json").read_text(encoding="utf-8"))
    return {"rows": problems * copies, "kept": manifest["outputs"]["train.parquet"]["rows"], **costs}


def _make(source: Path, problems: int, copies: int) -> None:
    """Questions of 20 to 80 words, each with its own numbers; the copies lie apart, as in a shuffled file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    generator = random.Random(0)
    questions = [
        f"Problem {number}: " + " ".join(generator.choice(WORDS) for _ in range(generator.randrange(20, 80))) + "?"
        for number in range(problems)
    ]
    answers = [str(generator.randrange(1000)) for _ in range(problems)]
    table = pa.table({"prompt": questions, "answer": answers})
    with pq.ParquetWriter(source, table.schema) as writer:
        for _ in range(copies):
            writer.write_table(table)


if __name__ == "__main__":
    main()
