"""Take the batches that an audit examines from a data loader, check them and move them to the model's device."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from cynosure.patching import IGNORED

N_BATCHES = 4  # a data loader may be endless
COMPLETION = ("completion_mask", "assistant_masks")  # TRL's columns that mark the completion


@dataclass(frozen=True)
class AuditBatch:
    """A batch; all tensors are (B, T).

    Label t names the token at t + `ahead`. That is 0 in most data sets, which leave the shift to the model, 1 in data
    sets that shift, and -1 in those that shift the wrong way.
    """

    index: int
    given: Any  # the original batch on the device, for the loss function
    ids: Tensor
    labels: Tensor
    attention: Tensor | None  # bool: False is padding; None if there is no mask of this shape
    completion: Tensor | None  # bool: True is a token to learn
    ahead: int = 0

    def with_labels(self, labels: Tensor) -> Any:
        """Return a copy of the original batch with other labels."""
        given = copy.copy(self.given)
        given["labels"] = labels.clone()  # a loss function may change its batch
        return given

    def targets(self, shift: int) -> Tensor:
        """Return the targets after a loss shifts the labels: at t the label of t + shift, -100 beyond the end."""
        return pulled(self.labels, shift, IGNORED)

    @property
    def masked_otherwise(self) -> bool:
        """Whether the attention mask has another shape, so that it does not show the padding."""
        return self.attention is None and "attention_mask" in self.given

    @property
    def truth(self) -> Tensor:
        """The right target of each position: the next token if it is labelled, otherwise -100."""
        return self.targets(1 - self.ahead)

    @property
    def own_labels(self) -> Tensor:
        """The labels, each at the position of the token that it names."""
        return pulled(self.labels, -self.ahead, IGNORED)

    def place(self, where: Tensor) -> str:
        """Describe the first position where a (B, T) mask is true."""
        row, position = where.nonzero()[0].tolist()
        return f"batch {self.index}, row {row}, position {position}"


def pulled(values: Tensor, shift: int, beyond: int) -> Tensor:
    """Return (B, T) values moved to the left: at t the value of t + shift, and `beyond` past either end."""
    shift = max(-values.shape[1], min(shift, values.shape[1]))
    if shift < 0:
        return torch.cat([torch.full_like(values[:, shift:], beyond), values[:, :shift]], 1)
    return torch.cat([values[:, shift:], torch.full_like(values[:, :shift], beyond)], 1)


def take_batches(batches: Iterable[Any], device: torch.device) -> list[AuditBatch]:
    """Read the first N_BATCHES batches. Raise ValueError or TypeError if one is not a batch with labels."""
    if isinstance(batches, Mapping):
        raise TypeError("batches is a single batch, expected an iterable of batches: call audit(model, [batch])")
    taken = [read_batch(index, given, device) for index, given in enumerate(islice(batches, N_BATCHES))]
    if not taken:
        raise ValueError("batches is empty: an audit needs at least one. Pass a DataLoader or a list of batches")
    ahead = labels_ahead(taken)
    return [replace(batch, ahead=ahead) for batch in taken]


def read_batch(index: int, given: Any, device: torch.device) -> AuditBatch:
    name = f"batch {index}"
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} is a {type(given).__name__}, expected a dict of tensors: pass model inputs by name")
    for column in ("input_ids", "labels"):
        if column not in given:
            way = "DataCollatorForLanguageModeling(tokenizer, mlm=False) adds it"
            raise ValueError(f"{name} has no {column!r}, only {', '.join(map(str, given))}: {way}")
    moved = copy.copy(given)
    for column, value in given.items():
        if isinstance(value, Tensor):
            moved[column] = value.to(device)  # type: ignore[index]
    ids = moved["input_ids"]
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point() or not ids.numel():
        raise ValueError(f"{name}: input_ids must be a (B, T) tensor of ids, got {described(ids)}")
    labels = same_shape(name, "labels", moved["labels"], ids)
    attention = moved.get("attention_mask")
    if not isinstance(attention, Tensor) or attention.shape != ids.shape:
        attention = None
    masks = [same_shape(name, column, moved[column], ids) != 0 for column in COMPLETION if column in moved]
    completion = torch.stack(masks).all(0) if masks else None
    return AuditBatch(index, moved, ids, labels, None if attention is None else attention != 0, completion)


def same_shape(name: str, column: str, value: Any, ids: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != ids.shape or value.is_floating_point():
        shape = tuple(ids.shape)
        raise ValueError(
            f"{name}: {column} must be integers with the shape of input_ids, {shape}, got {described(value)}"
        )
    return value


def described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def labels_ahead(batches: list[AuditBatch]) -> int:
    """Return 1 if most labels name the next token, -1 if most name the previous one, else 0. Padding is left out.

    A majority is enough, because the label after the end of a text may be EOS.
    """
    counts = dict.fromkeys((0, 1, -1), 0)
    n_labels = 0
    for batch in batches:
        real = torch.ones_like(batch.ids, dtype=torch.bool) if batch.attention is None else batch.attention
        inside = real & (batch.labels != IGNORED)
        n_labels += int(inside.sum())
        for ahead in counts:
            counts[ahead] += int((inside & (batch.labels == pulled(batch.ids, ahead, IGNORED))).sum())
    likeliest = max(counts, key=lambda ahead: counts[ahead])
    return likeliest if 2 * counts[likeliest] > n_labels else 0
