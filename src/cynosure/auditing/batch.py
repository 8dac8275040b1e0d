"""The batches an audit looks at: taken from a user's data loader, checked, and brought to the model's device."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from cynosure.patching import IGNORED

N_BATCHES = 4  # of a data loader, which may have no end
COMPLETION = ("completion_mask", "assistant_masks")  # TRL's names for where the completion is


@dataclass(frozen=True)
class AuditBatch:
    """A batch; all tensors are (B, T).

    Label t is the token at t + `ahead`: 0 in most data sets, which leave the shift to the model, 1 in others, and -1 in
    one that has shifted the wrong way.
    """

    index: int
    given: Any  # as it came, for the loss function
    ids: Tensor
    labels: Tensor
    attention: Tensor | None  # bool: False is padding; None where there is no mask of this shape
    completion: Tensor | None  # bool: True is what is to be learned
    ahead: int = 0

    def with_labels(self, labels: Tensor) -> Any:
        """The batch as it came, in a copy, with other labels."""
        given = copy.copy(self.given)
        given["labels"] = labels.clone()  # which a loss function may change
        return given

    def targets(self, shift: int) -> Tensor:
        """What position t is asked for when a loss shifts the labels: the label of t + shift; -100 beyond the end."""
        return pulled(self.labels, shift, IGNORED)

    @property
    def masked_otherwise(self) -> bool:
        """Whether attention has a mask of another shape, which says more than what is padding."""
        return self.attention is None and "attention_mask" in self.given

    @property
    def truth(self) -> Tensor:
        """What position t should be asked for: the token after it, where that is labelled."""
        return self.targets(1 - self.ahead)

    @property
    def own_labels(self) -> Tensor:
        """The labels at the place of the tokens that they name."""
        return pulled(self.labels, -self.ahead, IGNORED)

    def place(self, where: Tensor) -> str:
        """The first place in a (B, T) mask."""
        row, position = where.nonzero()[0].tolist()
        return f"batch {self.index}, row {row}, position {position}"


def pulled(values: Tensor, shift: int, beyond: int) -> Tensor:
    """(B, T): at t the value of t + shift."""
    shift = max(-values.shape[1], min(shift, values.shape[1]))
    if shift < 0:
        return torch.cat([torch.full_like(values[:, shift:], beyond), values[:, :shift]], 1)
    return torch.cat([values[:, shift:], torch.full_like(values[:, :shift], beyond)], 1)


def take_batches(batches: Iterable[Any], device: torch.device) -> list[AuditBatch]:
    """The first of them, at most N_BATCHES. Raises ValueError or TypeError for what is no batch with labels."""
    if isinstance(batches, Mapping):
        raise TypeError("batches is one batch, not an iterable of them: audit(model, [batch])")
    found = [read_batch(index, given, device) for index, given in enumerate(islice(batches, N_BATCHES))]
    if not found:
        raise ValueError("batches is empty: an audit needs at least one, such as a DataLoader gives")
    ahead = labels_ahead(found)
    return [replace(batch, ahead=ahead) for batch in found]


def read_batch(index: int, given: Any, device: torch.device) -> AuditBatch:
    name = f"batch {index}"
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} is a {type(given).__name__}, not a dict of tensors: give the model's inputs by name")
    for column in ("input_ids", "labels"):
        if column not in given:
            way = "DataCollatorForLanguageModeling(tokenizer, mlm=False) makes them"
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
            f"{name}: {column} must be integers of the shape of input_ids, {shape}, got {described(value)}"
        )
    return value


def described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def labels_ahead(batches: list[AuditBatch]) -> int:
    """1 where most labels name the token after theirs, -1 where the one before, else 0; padding does not count.

    Most, not all: where one text ends and the next begins, or padding, the label may be EOS.
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
