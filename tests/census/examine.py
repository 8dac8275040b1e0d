"""All that the census finds out about one model type."""

from typing import Any

import torch

from tests.census.compare import seeded, text_of
from tests.census.inputs import inputs_of
from tests.census.patched import Tamper, of_patch
from tests.census.splits import of_split
from tests.census.tiny import tiny_model

NO_TEXT = {
    "diffusion_gemma": "it computes no loss: its training is a diffusion outside of the model",
    "pi0": "its loss is a squared error of actions, not of tokens",
}


def examine(kind: str, table: str, names: tuple[str, ...] = (), tamper: Tamper | None = None) -> dict[str, Any]:
    """A record of one model type; `names` and `tamper` as for `of_patch`, without the split then."""
    record: dict[str, Any] = {"kind": kind, "table": table}
    if kind in NO_TEXT:
        return record | {"status": "no loss of text", "reason": NO_TEXT[kind]}
    try:
        model = tiny_model(kind, table)
    except Exception as error:
        return record | {"status": "not built", "reason": text_of(error)}
    inputs = usable(model, inputs_of(kind, model))
    record |= {"class": type(model).__name__, "inputs": sorted(set(inputs) - {"labels"})}
    record |= of_patch(model, inputs, names, tamper)
    if table == "causal" and not names:
        record["split"] = of_split(model)
    return record


def usable(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs, without a cache where the model cannot do with its own."""
    with torch.no_grad():
        try:
            seeded(model, inputs)
        except Exception:
            return inputs | {"use_cache": False}
    return inputs
