"""Trainer's label smoothing, without materializing the logits."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cynosure.patching.forward import fused_head
from cynosure.patching.model import Patch


class Smoother:
    """The `label_smoother` of a patched Trainer. It computes the same loss from a patched model's logits.

    A token's loss is (1 - epsilon) times the loss of the target, plus epsilon times the mean loss of all classes. The
    result is the mean over the tokens that count, or their sum divided by `num_items_in_batch`. In evaluation, the
    smoother also keeps the sum of each text.
    """

    def __init__(self, own: Any, model_patch: Patch) -> None:
        self.own, self.model_patch = own, model_patch
        self.sums: list[Tensor] = []  # (B,) nats of each text

    def __call__(
        self,
        model_output: Any,
        labels: Tensor,
        shift_labels: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        logits = model_output["logits"] if isinstance(model_output, dict) else model_output[0]
        if shift_labels:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        logits, target = logits.float().view(-1, logits.shape[-1]), labels.to(logits.device).reshape(-1)
        options: dict[str, Any] = {"ignore_index": self.own.ignore_index}
        smoothed = options | {"label_smoothing": self.own.epsilon}
        if torch.is_grad_enabled():
            total = F.cross_entropy(logits, target, reduction="sum", **smoothed)
        else:
            losses = F.cross_entropy(logits, target, reduction="none", **smoothed).double()
            self.sums.append(losses.view(labels.shape).sum(-1))
            total = losses.sum().float()
            if self.model_patch.without_labels and fused_head(self.model_patch.own_forward) is None:
                F.cross_entropy(logits, target, reduction="sum", **options)  # gives statistics to the observer
        n_counted = (labels != self.own.ignore_index).sum() if num_items_in_batch is None else num_items_in_batch
        return total / (n_counted.to(total.device) if isinstance(n_counted, Tensor) else n_counted)
