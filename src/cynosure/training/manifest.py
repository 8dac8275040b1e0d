"""`train.json`: what a run is and which checkpoints it has kept. It carries a SHA-256 of all else that it says."""

import json
from pathlib import Path
from typing import Any, get_type_hints

from cynosure.measure.storage.manifest import checksum
from cynosure.training.data import Facts
from cynosure.training.integrity import Damaged, misfit, reason_of
from cynosure.training.packing import Packing
from cynosure.training.settings import TrainingPlan, TrainSettings

SEAL = "sha256"
DATA_DIGESTS = "data_sha256"  # of its files, by their names
KEPT = "checkpoints"  # by step, the digest of each one's list of digests; None for one of an earlier version
PACKING = "packing"  # of a version that had one way alone, "stream", absent
KINDS = {
    "settings": dict, "plan": get_type_hints(TrainingPlan), "facts": get_type_hints(Facts), "parameters": int,
    "corpus": dict, "valid": dict, "products": dict[str, str], "device": str, "dtype": str,
    "environment": {"threads": int, "torch": str},
}  # fmt: skip
ADDED = {
    DATA_DIGESTS: dict[str, str],
    KEPT: dict[str, str | None],
    "init_sha256": str | None,
    PACKING: get_type_hints(Packing),
}  # absent from runs of earlier versions


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the SHA-256 of the rest of it."""
    rest = {name: value for name, value in values.items() if name != SEAL}
    return rest | {SEAL: checksum(rest)}


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest in a file. Raises Damaged where it is not as it was written, or is of no run."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is not JSON: {reason_of(error)}") from error
    if not isinstance(found, dict) or not {"settings", "plan", "facts", "dtype"} <= found.keys():
        raise Damaged(f"{path} is of no run known here")
    if (SEAL in found or KEPT in found) and found.get(SEAL) != sealed(found)[SEAL]:
        raise Damaged(f"{path} does not match the SHA-256 in it")
    wrong = misfit(found, KINDS | {name: kind for name, kind in ADDED.items() if name in found}) or unfit(found)
    if wrong:
        raise Damaged(f"{path} is damaged: {wrong}")
    return found


def unfit(found: dict[str, Any]) -> str | None:
    """What makes settings or plan of the right types no training; None where nothing does."""
    hints = get_type_hints(TrainSettings)
    wrong = misfit(found["settings"], {name: hints[name] for name in found["settings"] if name in hints})
    if wrong:
        return f"settings: {wrong}"
    try:
        TrainSettings.of_json(found["settings"])
    except ValueError as error:
        return f"settings: {error}"
    if not all(step.isdigit() for step in found.get(KEPT, {})):
        return f"{KEPT}: its names are no steps"
    for part, kind in (("plan", TrainingPlan), ("facts", Facts)):
        if other := sorted(found[part].keys() - set(kind._fields)):
            return f"{part}: {other[0]} is not known here"
    plan = TrainingPlan(**found["plan"])
    least = dict.fromkeys(TrainingPlan._fields, 1) | {"warmup_steps": 0, "learning_rate": 0}
    for name, value in plan._asdict().items():
        if not value >= least[name]:
            return f"plan: {name} is {value}, not at least {least[name]}"
    if plan.micro_rows * plan.accumulation * plan.processes * plan.row_tokens != plan.batch_tokens:
        return f"plan: its micro-batches do not make up its batch of {plan.batch_tokens:,} tokens"
    return None
