"""What can be made of a recipe for logits and labels: a cross-entropy, per-token figures, and both at once."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from cynosure.loss import TokenStats, linear_cross_entropy, refuse_batched, token_stats
from cynosure.patching.recipe import Recipe, product_dtype

IGNORED = -100
NAMES = ("hidden", "weight", "bias")
Items = Tensor | float | None  # the number of tokens of a whole accumulated or distributed batch


class Objective(NamedTuple):
    """What is minimised beside the cross-entropy; as of `linear_cross_entropy`."""

    z_loss: float = 0.0
    label_smoothing: float = 0.0


PLAIN = Objective()  # the cross-entropy alone


class Labelled(NamedTuple):
    """A recipe for logits (..., T, V), and what each of them is to be measured against."""

    recipe: Recipe
    target: Tensor  # (..., T) class indices, or (..., T, V) probabilities
    shift: int = 0  # 1: the target of position t stands at t + 1; 0: at t
    ignore_index: int = IGNORED
    class_weight: Tensor | None = None  # (V,)
    label_smoothing: float = 0.0

    @staticmethod
    def of(recipe: Recipe, labels: Tensor | None, shift_labels: Tensor | None = None) -> "Labelled":
        """`shift_labels`, which stand where they are predicted, go before `labels`; ValueError without either."""
        target = labels if shift_labels is None else shift_labels
        if target is None:
            raise ValueError("a loss needs labels or shift_labels")
        shift = 1 if shift_labels is None else 0
        if shift and target.shape != recipe.rows:  # of states laid end to end: no row guesses the next
            target, shift = F.pad(target[..., 1:], (0, 1), value=IGNORED), 0
        return Labelled(recipe, target.to(recipe.hidden.device).reshape(recipe.rows), shift)

    @property
    def is_plain(self) -> bool:
        """Whether its loss is the nats of `stats`."""
        return not self.target.is_floating_point() and self.class_weight is None and self.label_smoothing == 0

    def options(self) -> dict[str, Any]:
        """All of it but hidden and weight, as `token_stats` takes it."""
        head = {"bias": self.recipe.bias, "scale": self.recipe.scale, "softcap": self.recipe.softcap}
        return head | {"target": self.target, "shift": self.shift, "ignore_index": self.ignore_index}

    def loss(self, reduction: Any, objective: Objective = PLAIN, chunk_tokens: int | None = None) -> Tensor:
        """The cross-entropy, reduced as by `F.cross_entropy`, and what is minimised beside it."""
        return linear_cross_entropy(
            self.recipe.hidden, self.recipe.weight, reduction=reduction, class_weight=self.class_weight,
            label_smoothing=objective.label_smoothing or self.label_smoothing, z_loss=objective.z_loss,
            chunk_tokens=chunk_tokens, **self.options(),
        )  # fmt: skip

    def stats(self) -> TokenStats:
        """Figures of every token, without gradients."""
        return token_stats(self.recipe.hidden, self.recipe.weight, **self.options())

    def spread(self, stats: TokenStats) -> TokenStats:
        """These figures where their tokens stood in the batch, (B, ...); the others count as ignored."""
        lead, places = self.recipe.lead, self.recipe.places
        if places is None or lead is None:
            return stats

        def whole(part: Tensor) -> Tensor:
            nothing = torch.nan if part.is_floating_point() else -1
            rest = part.shape[places.ndim :]
            found = part.new_full((lead.numel(), *rest), nothing)
            found[places.reshape(-1)] = part.reshape(places.numel(), *rest)
            return found.view(*lead, *rest)

        return TokenStats(*map(whole, stats))

    def predicted(self) -> Tensor:
        """The targets, each where it is predicted: (..., T - shift)."""
        return self.target[..., self.shift :]

    def logprobs(self, stats: TokenStats) -> Tensor:
        """log p(target), 0 where ignored, as `stats` has it, but with gradients: three products when they are asked."""
        recipe = self.recipe
        dtype = product_dtype(recipe.hidden)  # autocast's, which is over when the backward comes
        parts = (None if x is None else x.to(dtype) for x in (recipe.hidden, recipe.weight, recipe.bias))
        known = -stats.nll.nan_to_num(0.0, posinf=torch.inf)
        found: Tensor = Known.apply(known, *parts, self)  # type: ignore[no-untyped-call]
        return found

    def hooked(self, made: Tensor) -> Tensor:
        """What was made of the logits, with the hooks that were to run when a gradient comes to them."""
        for hook in self.recipe.before_backward if made.requires_grad else ():
            made.register_hook(hook)  # type: ignore[no-untyped-call]
        return made


def reduced(stats: TokenStats, reduction: str) -> Tensor:
    """The loss that these figures come to: `Labelled.loss`, without gradients. The mean of nothing is 0."""
    counted = stats.rank > 0
    nll = torch.where(counted, stats.nll, 0.0)
    if reduction == "none":
        return nll
    return nll.sum() if reduction == "sum" else nll.sum() / counted.sum().clamp(min=1)


class Known(Function):
    """Log-probabilities that are there already; the backward makes the logits again, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, known: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, labelled: Labelled
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.labelled = labelled
        return known.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        refuse_batched(upstream[0])
        wanted = ctx.needs_input_grad[1:4]
        parts = [None if x is None else x.detach() for x in ctx.saved_tensors]
        asked = [x.requires_grad_() for x, want in zip(parts, wanted, strict=True) if x is not None and want]
        labelled: Labelled = ctx.labelled
        changed: dict[str, Any] = dict(zip(NAMES, parts, strict=True))
        labelled = labelled._replace(recipe=replace(labelled.recipe, **changed))
        token_weight = torch.zeros_like(labelled.target, dtype=upstream[0].dtype)
        token_weight[..., labelled.shift :] = -upstream[0]
        with torch.enable_grad():
            total = linear_cross_entropy(
                labelled.recipe.hidden, labelled.recipe.weight, reduction="sum", token_weight=token_weight,
                **labelled.options(),
            )  # fmt: skip
            found = iter(torch.autograd.grad(total, asked))
        return (None, *(next(found) if want else None for want in wanted), None)
