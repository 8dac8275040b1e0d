"""`train.json`: what a run is and which checkpoints it has kept, with a SHA-256 of its own content."""

import json
from pathlib import Path
from typing import Any, get_type_hints

from cynosure.measure.storage.manifest import checksum
from cynosure.training.data import Facts
from cynosure.training.integrity import Damaged, misfit, reason_of
from cynosure.training.packing import Packing
from cynosure.training.settings import TrainingPlan, TrainSettings

SEAL = "sha256"
DATA_DIGESTS = "data_sha256"  # of its files, by name
KEPT = "checkpoints"  # by step, the SHA-256 of the checkpoint's digests; None from an earlier version
PACKING = "packing"  # missing from earlier versions, which could only pack a stream
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
}  # missing from runs of earlier versions


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest with the SHA-256 of its other values."""
    rest = {name: value for name, value in values.items() if name != SEAL}
    return rest | {SEAL: checksum(rest)}


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest in a file. Raises Damaged if it is damaged or not the manifest of a run."""
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is not JSON: {reason_of(error)}") from error
    if not isinstance(manifest, dict) or not {"settings", "plan", "facts", "dtype"} <= manifest.keys():
        raise Damaged(f"{path} is not the manifest of a training run")
    if (SEAL in manifest or KEPT in manifest) and manifest.get(SEAL) != sealed(manifest)[SEAL]:
        raise Damaged(f"{path} does not match the SHA-256 in it")
    added = {name: kind for name, kind in ADDED.items() if name in manifest}
    wrong = misfit(manifest, KINDS | added) or unfit(manifest)
    if wrong:
        raise Damaged(f"{path} is damaged: {wrong}")
    return manifest


def unfit(manifest: dict[str, Any]) -> str | None:
    """Return why settings or plan of the right types make no valid training; None if they do."""
    hints = get_type_hints(TrainSettings)
    wrong = misfit(manifest["settings"], {name: hints[name] for name in manifest["settings"] if name in hints})
    if wrong:
        return f"settings: {wrong}"
    try:
        TrainSettings.of_json(manifest["settings"])
    except ValueError as error:
        return f"settings: {error}"
    if not all(step.isdigit() for step in manifest.get(KEPT, {})):
        return f"{KEPT}: its names are not steps"
    for part, kind in (("plan", TrainingPlan), ("facts", Facts)):
        if other := sorted(manifest[part].keys() - set(kind._fields)):
            return f"{part}: {other[0]} is unknown"
    plan = TrainingPlan(**manifest["plan"])
    least = dict.fromkeys(TrainingPlan._fields, 1) | {"warmup_steps": 0, "learning_rate": 0}
    for name, value in plan._asdict().items():
        if not value >= least[name]:
            return f"plan: {name} is {value}, not at least {least[name]}"
    if plan.micro_rows * plan.accumulation * plan.processes * plan.row_tokens != plan.batch_tokens:
        return f"plan: its micro-batches do not add up to its batch of {plan.batch_tokens:,} tokens"
    return None
