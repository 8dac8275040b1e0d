"""Compare the fused loss and its gradients with those of a model's own `model(..., labels=...)`."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cynosure.loss import linear_cross_entropy, place
from cynosure.models import Head, Tracer, error_of, finite_part, forward, hidden_states, read_head
from cynosure.patching import IGNORED, Deferring, HeadMatmul, check_ids, embedding_rows

TOLERANCE = 1e-5


class Check(NamedTuple):
    """One comparison: values, or norms of tensors, without logits of -inf. Differences are relative: |a - b| / |b|.

    It passes if ours is within 1e-5 of the model's own value, or at least as near to float64 as that. For low losses,
    float32 rounding alone exceeds 1e-5.
    """

    name: str
    ours: float
    theirs: float
    difference: float
    ours_from_exact: float
    theirs_from_exact: float

    @property
    def equal(self) -> bool:
        return self.difference <= TOLERANCE

    @property
    def passed(self) -> bool:
        return self.equal or self.ours_from_exact <= self.theirs_from_exact


class LossAndGradients(NamedTuple):
    """A loss and its gradients with respect to the hidden states and the head's weight."""

    loss: Tensor
    d_hidden: Tensor
    d_weight: Tensor


def check(model: Any, input_ids: Tensor) -> list[Check]:
    """Compare the fused loss with a model's own loss.

    It compares the logits (head, bias, scale, softcap), the loss and its gradients, the same with half of the labels
    ignored, and the loss divided by `num_items_in_batch` if the model uses that. Labels are shifted if the model shifts
    them; decoders of encoder-decoder models do not. Full logits are materialized.

    Args:
        model: a transformers causal language model in float32.
        input_ids: (T,) token ids, at least 32; a few dozen are best. With fewer, torch's matmuls may be a hundred times
            less exact.

    Returns:
        A `Check` for each comparison, with `passed`.

    Raises:
        ValueError: the model's head cannot be read, its own loss fails, the model is not in float32, a token is outside
            its embedding, or there are too few tokens.
    """
    if model.dtype != torch.float32:
        raise ValueError(f"the check needs a model in float32, got {model.dtype}: call model.float() first")
    if input_ids.ndim != 1 or len(input_ids) < 32:
        raise ValueError(f"the check needs at least 32 tokens in one row, got shape {tuple(input_ids.shape)}")
    check_ids(input_ids, embedding_rows(model), f"the embedding of {type(model).__name__}")
    head = read_head(model)
    ids = input_ids.to(head.weight.device)[None]
    with torch.no_grad():
        hidden = hidden_states(model, ids)
        theirs = forward(model, ids).logits
        checks = [compare("logits", head.logits(hidden), theirs, wide(head).logits(hidden.double()))]
    return checks + list(losses(model, head, ids, hidden))


def losses(model: Any, head: Head, ids: Tensor, hidden: Tensor) -> Iterator[Check]:
    """Yield the comparisons of losses and gradients: all labels, half ignored, and divided over several batches."""
    partly = ids.clone()
    partly[:, : ids.shape[1] // 2] = IGNORED
    exact_head, exact_hidden = wide(head), hidden.double()
    shift = find_shift(own_loss(model, head, ids, ids), exact_head, ids, exact_hidden)
    unshifted = "" if shift else ", labels not shifted"
    for labels, what in ((ids, unshifted), (partly, f", half ignored{unshifted}")):
        theirs, ours = own_loss(model, head, ids, labels), fused_loss(head, labels, hidden, shift)
        exact = plain_loss(exact_head, labels, exact_hidden, shift)
        yield compare(f"loss{what}", ours.loss, theirs.loss, exact.loss)
        yield compare(f"d hidden{what}", ours.d_hidden, theirs.d_hidden, exact.d_hidden)
        yield compare(f"d weight{what}", ours.d_weight, theirs.d_weight, exact.d_weight)
    if getattr(model, "accepts_loss_kwargs", True):
        items = 3 * ids.shape[1]  # as if this were one of several micro-batches
        their_loss = own_loss(model, head, ids, partly, num_items_in_batch=items).loss
        if their_loss == theirs.loss:  # it accepts the number and ignores it
            return
        our_loss = fused_loss(head, partly, hidden, shift, items).loss
        n_counted = int((partly[:, shift:] != IGNORED).sum())
        yield compare("loss / num_items_in_batch", our_loss, their_loss, exact.loss * (n_counted / items))


def find_shift(own: LossAndGradients, exact: Head, labels: Tensor, hidden: Tensor) -> int:
    """Return by how many tokens a model's loss shifts its labels: the one of 0 and 1 that gives the nearer loss."""
    return min((1, 0), key=lambda shift: abs(float(own.loss - plain_loss(exact, labels, hidden, shift).loss)))


class DetachedHead(Deferring):
    """Context in which the head's matmuls take hidden states that are detached from the backbone."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, Tracer())
        self.matmuls: list[tuple[Tensor, Tensor]] = []  # the hidden states and the weight of each

    def logits(self, product: HeadMatmul) -> Tensor:
        self.matmuls.append((product.hidden.detach().requires_grad_(), product.weight))
        return F.linear(*self.matmuls[-1], product.bias)


def own_loss(model: Any, head: Head, ids: Tensor, labels: Tensor, **options: int) -> LossAndGradients:
    """Call `model(..., labels=...)` on detached hidden states, so that gradients are those of the head alone."""
    name = type(model).__name__
    try:
        with torch.enable_grad():
            detached = DetachedHead(model)
            with detached:
                loss = forward(model, ids, labels=labels, **options).loss
    except Exception as error:
        raise ValueError(f"{name} cannot be checked: its own loss of a few tokens fails: {error}") from error
    matmuls = [matmul for matmul in detached.matmuls if place(matmul[1]) == place(head.weight)]
    if len(matmuls) != 1:
        raise ValueError(f"{name} cannot be checked: its logits are not one matmul with a weight. Merge its adapters")
    d_hidden, d_weight = torch.autograd.grad(loss, matmuls[0])
    return LossAndGradients(loss.detach(), d_hidden, d_weight[: head.weight.shape[0]])


def fused_loss(
    head: Head, labels: Tensor, hidden: Tensor, shift: int, normalizer: float | None = None
) -> LossAndGradients:
    """Return the loss and gradients of `linear_cross_entropy`."""
    leaf, weight = hidden.detach().clone().requires_grad_(), head.weight.detach().clone().requires_grad_()
    with torch.enable_grad():
        loss = linear_cross_entropy(
            leaf,
            weight,
            labels,
            bias=head.bias,
            scale=head.scale,
            softcap=head.softcap,
            shift=shift,
            normalizer=normalizer,
        )
        d_hidden, d_weight = torch.autograd.grad(loss, [leaf, weight])
    return LossAndGradients(loss.detach(), d_hidden, d_weight)


def plain_loss(head: Head, labels: Tensor, hidden: Tensor, shift: int) -> LossAndGradients:
    """Return the loss and gradients from full logits; in float64 they are the reference."""
    leaf, weight = hidden.detach().clone().requires_grad_(), head.weight.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = head._replace(weight=weight).logits(leaf[:, : leaf.shape[1] - shift])
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, shift:].flatten(), ignore_index=IGNORED)
        d_hidden, d_weight = torch.autograd.grad(loss, [leaf, weight])
    return LossAndGradients(loss.detach(), d_hidden, d_weight)


def wide(head: Head) -> Head:
    """Return the head in float64."""
    return head._replace(weight=head.weight.double(), bias=None if head.bias is None else head.bias.double())


def compare(name: str, ours: Tensor, theirs: Tensor, exact: Tensor) -> Check:
    a, b = ours.double(), theirs.double()

    def size(x: Tensor) -> float:
        return float((finite_part(x) if x.ndim else x).norm())  # a loss stays infinite

    def relative(x: Tensor, y: Tensor) -> float:
        return float(error_of(x, y).norm() / max(size(y), 1e-30))

    return Check(name, size(a), size(b), relative(a, b), relative(a, exact), relative(b, exact))
