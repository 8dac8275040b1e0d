"""The fused loss against a model's own `model(..., labels=...)`: its value and its gradients."""

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

    Passed is what lies within 1e-5 of the model's own, or nearer to float64 than the model's own does: with low losses
    float32 itself leaves more than that.
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
    """A loss, and its gradients with respect to the hidden states and the head's weight."""

    loss: Tensor
    d_hidden: Tensor
    d_weight: Tensor


def check(model: Any, input_ids: Tensor) -> list[Check]:
    """Compare the fused loss with a model's own loss.

    Compared are the logits (head, bias, scale, softcap), the loss with its gradients, the same with half the labels
    ignored, and the loss divided by `num_items_in_batch` where the model takes that. Labels are shifted if the model
    shifts them, which decoders of encoder-decoders do not. Full logits are materialized.

    Args:
        model: a causal language model of transformers, in float32.
        input_ids: (T,) tokens, at least 32; a few dozen are best. With fewer, torch's matmuls may be a hundred times
            less exact.

    Returns:
        A result for each comparison, with `passed`.

    Raises:
        ValueError: the model's head cannot be read, its own loss fails, the model is not float32, a token is beyond its
            embedding, or there are too few tokens.
    """
    if model.dtype != torch.float32:
        raise ValueError(f"the check is made in float32, the model is {model.dtype}")
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
    """The comparisons of losses and gradients: labels whole, half ignored, and normalised over several batches."""
    partly = ids.clone()
    partly[:, : ids.shape[1] // 2] = IGNORED
    exactly, exact_hidden = wide(head), hidden.double()
    shift = find_shift(own_loss(model, head, ids, ids), exactly, ids, exact_hidden)
    unshifted = "" if shift else ", labels not shifted"
    for labels, what in ((ids, unshifted), (partly, f", half ignored{unshifted}")):
        theirs, ours = own_loss(model, head, ids, labels), fused_loss(head, labels, hidden, shift)
        exact = plain_loss(exactly, labels, exact_hidden, shift)
        yield compare(f"loss{what}", ours.loss, theirs.loss, exact.loss)
        yield compare(f"d hidden{what}", ours.d_hidden, theirs.d_hidden, exact.d_hidden)
        yield compare(f"d weight{what}", ours.d_weight, theirs.d_weight, exact.d_weight)
    if getattr(model, "accepts_loss_kwargs", True):
        items = 3 * ids.shape[1]  # as if this were one of several micro-batches
        their_loss = own_loss(model, head, ids, partly, num_items_in_batch=items).loss
        if their_loss == theirs.loss:  # it takes the number and ignores it
            return
        our_loss = fused_loss(head, partly, hidden, shift, items).loss
        n_counted = int((partly[:, shift:] != IGNORED).sum())
        yield compare("loss / num_items_in_batch", our_loss, their_loss, exact.loss * (n_counted / items))


def find_shift(own: LossAndGradients, exact: Head, labels: Tensor, hidden: Tensor) -> int:
    """How many tokens ahead of its input a model's loss has its labels, 0 or 1: where the loss is nearer to its own."""
    return min((1, 0), key=lambda shift: abs(float(own.loss - plain_loss(exact, labels, hidden, shift).loss)))


class DetachedHead(Deferring):
    """Inside of it the head's products are made of hidden states that are cut off from what they were made of."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, Tracer())
        self.products: list[tuple[Tensor, Tensor]] = []  # the hidden states and the weight of each

    def logits(self, product: HeadMatmul) -> Tensor:
        self.products.append((product.hidden.detach().requires_grad_(), product.weight))
        return F.linear(*self.products[-1], product.bias)


def own_loss(model: Any, head: Head, ids: Tensor, labels: Tensor, **options: int) -> LossAndGradients:
    """`model(..., labels=...)`, its hidden states cut off from the backbone so that only the head's gradient counts."""
    name = type(model).__name__
    try:
        with torch.enable_grad():
            cut = DetachedHead(model)
            with cut:
                loss = forward(model, ids, labels=labels, **options).loss
    except Exception as error:
        raise ValueError(f"{name} cannot be checked: its own loss of a few tokens fails: {error}") from error
    products = [product for product in cut.products if place(product[1]) == place(head.weight)]
    if len(products) != 1:
        raise ValueError(f"{name} cannot be checked: its logits are not one product of a weight, merge its adapters")
    d_hidden, d_weight = torch.autograd.grad(loss, products[0])
    return LossAndGradients(loss.detach(), d_hidden, d_weight[: head.weight.shape[0]])


def fused_loss(
    head: Head, labels: Tensor, hidden: Tensor, shift: int, normalizer: float | None = None
) -> LossAndGradients:
    """The same from `linear_cross_entropy`, which makes no full logits."""
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
    """The same from full logits: in float64 the truth both are measured against."""
    leaf, weight = hidden.detach().clone().requires_grad_(), head.weight.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = head._replace(weight=weight).logits(leaf[:, : leaf.shape[1] - shift])
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, shift:].flatten(), ignore_index=IGNORED)
        d_hidden, d_weight = torch.autograd.grad(loss, [leaf, weight])
    return LossAndGradients(loss.detach(), d_hidden, d_weight)


def wide(head: Head) -> Head:
    """The head in float64."""
    return head._replace(weight=head.weight.double(), bias=None if head.bias is None else head.bias.double())


def compare(name: str, ours: Tensor, theirs: Tensor, exact: Tensor) -> Check:
    a, b = ours.double(), theirs.double()

    def size(x: Tensor) -> float:
        return float((finite_part(x) if x.ndim else x).norm())  # a loss stays infinite

    def relative(x: Tensor, y: Tensor) -> float:
        return float(error_of(x, y).norm() / max(size(y), 1e-30))

    return Check(name, size(a), size(b), relative(a, b), relative(a, exact), relative(b, exact))
