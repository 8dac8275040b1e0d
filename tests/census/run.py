"""Many model types, in processes of their own: a crash costs little."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

Record = dict[str, Any]
GROUP = 20  # types in a process
MARK = "@@"
SECONDS = 900


def worker(kinds: list[str], table: str) -> None:
    """Print the record of each type, a line of JSON."""
    import warnings

    import torch
    import transformers

    from tests.census.examine import examine

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    for kind in kinds:
        print("\n" + MARK + json.dumps(examine(kind, table)), flush=True)


def in_groups(kinds: list[str], table: str) -> Iterator[Record]:
    """Records of these types, from a process for each group."""
    for i in range(0, len(kinds), GROUP):
        yield from in_one_process(kinds[i : i + GROUP], table)


def in_one_process(kinds: list[str], table: str) -> list[Record]:
    """Records of these types; after one that ends the process, the rest from another."""
    command = [sys.executable, "-m", "tests.census", "--worker", "--table", table, "--kinds", *kinds]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    found = [json.loads(line.removeprefix(MARK)) for line in done.stdout.splitlines() if line.startswith(MARK)]
    rest = kinds[len(found) :]
    if rest:
        reason = f"the process ends with {done.returncode}: {done.stderr[-500:]}"
        found.append({"kind": rest[0], "table": table, "status": "wrong", "reason": reason})
        if rest[1:]:
            found += in_one_process(rest[1:], table)
    return found
