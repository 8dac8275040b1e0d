"""The census's results as they are kept: a line of JSON for each class."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.json"
CALLS = {"equal": "=", "own error": "-"}  # every other verdict is in the reason

Record = dict[str, Any]


def versions() -> dict[str, str]:
    import torch
    import transformers

    return {"torch": torch.__version__.partition("+")[0], "transformers": transformers.__version__}


def compact(record: Record) -> Record:
    """What is kept of a record."""
    found: Record = {
        name: record[name] for name in ("table", "kind", "class", "inputs", "status", "reason") if name in record
    }
    for name in ("loss", "gradient"):
        if name in record:
            found[name] = float(f"{record[name]:.1e}")
    if "calls" in record:
        found["calls"] = {name: CALLS.get(verdict, "wrong") for name, verdict in record["calls"].items()}
    if "bfloat16" in record:
        found["bfloat16"] = CALLS.get(record["bfloat16"], "wrong")
    if "split" in record:
        found["split"] = {name: record["split"][name] for name in ("status", "reason") if name in record["split"]}
    return found


def save(results: dict[str, Any], path: Path) -> None:
    """Write results, a line for each class."""
    lines = ",\n".join(json.dumps(record) for record in results["classes"])
    path.write_text(f'{{"versions": {json.dumps(results["versions"])},\n"classes": [\n{lines}\n]}}\n', encoding="utf-8")


def saved(path: Path = RESULTS) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def counted(classes: list[Record], table: str) -> Counter[str]:
    """How many classes of a table have which status."""
    return Counter(record["status"] for record in classes if record["table"] == table)


def counted_splits(classes: list[Record]) -> Counter[str]:
    return Counter(record["split"]["status"] for record in classes if "split" in record)
