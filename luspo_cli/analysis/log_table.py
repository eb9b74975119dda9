"""A long metrics.jsonl as one table, read by Arrow on all cores: half the time of reading it line by line.

Only a file in which nothing is out of the way is read like this. Of any other one `analysis.logs` says what is wrong with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luspo_cli.metrics.names import BY_LENGTH

if TYPE_CHECKING:
    import pandas as pd

SHORTEST_BYTES = 2**20
"""Below it the import of Arrow takes longer than the lines."""
_BLOCK_BYTES = 2**21


def read_table(log: Path) -> pd.DataFrame | None:
    """One row a line (index `step`) and one float column a key, in the order in which they first occur; NaN for null.

    None where the file is short, or anything in it is no whole line of JSON with a whole number under `step` and numbers, or
    null, under the other keys.
    """
    try:
        if log.stat().st_size < SHORTEST_BYTES:
            return None
        content = log.read_bytes()
        first = json.loads(content[: content.find(b"\n") + 1])
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(first, dict) or "step" not in first:
        return None
    import pyarrow
    import pyarrow.json

    # By the first line's keys in their order; what later lines add follows them, with the type that it shows.
    fields = [(key, pyarrow.int64() if key == "step" else pyarrow.float64()) for key in first if key != BY_LENGTH]
    try:
        read = pyarrow.json.read_json(
            pyarrow.BufferReader(content),
            read_options=pyarrow.json.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=pyarrow.schema(fields)),
        )
    except pyarrow.ArrowException:
        return None
    kept = [name for name in read.column_names if name not in ("step", BY_LENGTH)]
    numbers = all(_is_number(read.schema.field(name).type) for name in kept)
    steps = read.column("step")
    # Arrow also takes several objects in a line, or one over several lines.
    if not numbers or steps.null_count or read.num_rows != content.count(b"\n"):
        return None
    import pandas as pd

    columns = {name: read.column(name).cast(pyarrow.float64(), safe=False).to_numpy() for name in kept}
    return pd.DataFrame(columns, index=pd.Index(steps.to_numpy(), name="step"))


def _is_number(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_null(kind))
