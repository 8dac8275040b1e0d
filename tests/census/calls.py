"""The calls that a patched model is compared on, by name."""

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
N_ITEMS = 37  # of several batches, in `num_items_in_batch`


class Call(NamedTuple):
    """Keyword arguments for a model, and whether it is in training mode."""

    inputs: dict[str, Any]
    train: bool = False


def calls_of(model: Any, inputs: dict[str, Any]) -> dict[str, Call]:
    """Calls with labels, some of them ignored."""
    labels = partly_ignored(inputs["labels"])
    plain = inputs | {"labels": labels}
    found = {"plain": Call(plain), "train": Call(plain, train=True)}
    ids = inputs.get("input_ids")
    if ids is not None and ids.ndim == 2 and labels.shape == ids.shape:
        found["right padding"] = Call(plain | padded(ids, labels, slice(-7, None)))
        found["left padding"] = Call(plain | padded(ids, labels, slice(None, 7)))
    found["num_items_in_batch"] = Call(plain | {"num_items_in_batch": N_ITEMS})
    found["num_items_in_batch, a tensor"] = Call(plain | {"num_items_in_batch": torch.tensor(N_ITEMS)})
    if labels.ndim == 2:
        shifted = F.pad(labels, (0, 1), value=IGNORED)[..., 1:].contiguous()
        found["shift_labels"] = Call(plain | {"shift_labels": shifted})
    if has_router(model):
        found["router losses"] = Call(plain | {"output_router_logits": True})
    found["tuple"] = Call(plain | {"return_dict": False})
    return found


def partly_ignored(labels: Tensor) -> Tensor:
    """Labels with some of each row ignored."""
    found = labels.clone()
    if found.ndim == 2:
        found[0, :5] = IGNORED
        found[1, 9:12] = IGNORED
    return found


def padded(ids: Tensor, labels: Tensor, where: slice) -> dict[str, Tensor]:
    """The second row padded."""
    mask, found = torch.ones_like(ids), labels.clone()
    mask[1, where], found[1, where] = 0, IGNORED
    return {"attention_mask": mask, "labels": found}


def has_router(model: Any) -> bool:
    name = "output_router_logits"
    return name in inspect.signature(model.forward).parameters or hasattr(model.config.get_text_config(), name)
