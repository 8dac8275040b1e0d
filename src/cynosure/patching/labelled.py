"""Compute a cross-entropy, per-token statistics, or both from a recipe for logits and their labels."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from cynosure.loss import (
    GradTolerance,
    TokenLogprobs,
    TokenStats,
    check_tolerance,
    draw_seed,
    linear_cross_entropy,
    refuse_batched,
    token_logprobs,
    token_stats,
)
from cynosure.patching.recipe import Recipe

IGNORED = -100
NAMES = ("hidden", "weight", "bias")
Items = Tensor | float | None  # the number of tokens of a whole accumulated or distributed batch


class Objective(NamedTuple):
    """Terms that are minimised in addition to the cross-entropy, as for `linear_cross_entropy`."""

    z_loss: float = 0.0
    label_smoothing: float = 0.0


PLAIN = Objective()  # only the cross-entropy


class Sampled(NamedTuple):
    """How the backward is sampled, as for `linear_cross_entropy`."""

    grad_tolerance: GradTolerance = 0.0
    generator: torch.Generator | None = None

    def fixed(self, recipe: Recipe) -> "Sampled | None":
        """Draw a seed now, for each of several backwards; None if the gradients of a recipe are exact."""
        tolerance = check_tolerance(self.grad_tolerance, recipe.head_dtype)
        trained = recipe.hidden.requires_grad or recipe.weight.requires_grad
        if tolerance == 0 or not trained or not torch.is_grad_enabled():
            return None
        return Sampled(tolerance, torch.Generator().manual_seed(int(draw_seed(self.generator))))


EXACT = Sampled()


class Labelled(NamedTuple):
    """A recipe for logits (..., T, V), and their targets."""

    recipe: Recipe
    target: Tensor  # (..., T) class indices, or (..., T, V) probabilities
    shift: int = 0  # 1: the target of position t is at t + 1; 0: at t
    ignore_index: int = IGNORED
    class_weight: Tensor | None = None  # (V,)
    label_smoothing: float = 0.0

    @staticmethod
    def of(recipe: Recipe, labels: Tensor | None, shift_labels: Tensor | None = None) -> "Labelled":
        """Use `shift_labels`, which are aligned with the logits, or else `labels`. Raises ValueError without either."""
        target = labels if shift_labels is None else shift_labels
        if target is None:
            raise ValueError("a loss needs labels or shift_labels")
        shift = 1 if shift_labels is None else 0
        if shift and target.shape != recipe.rows:  # hidden states are flattened: no row must predict the next row
            target, shift = F.pad(target[..., 1:], (0, 1), value=IGNORED), 0
        return Labelled(recipe, target.to(recipe.hidden.device).reshape(recipe.rows), shift)

    @property
    def is_plain(self) -> bool:
        """Whether the loss is the nll of `stats`."""
        return not self.target.is_floating_point() and self.class_weight is None and self.label_smoothing == 0

    def options(self) -> dict[str, Any]:
        """Return the arguments of `token_stats`, except hidden and weight."""
        recipe = self.recipe
        head = {"bias": recipe.bias, "scale": recipe.scale, "softcap": recipe.softcap, "head_dtype": recipe.head_dtype}
        return head | {"target": self.target, "shift": self.shift, "ignore_index": self.ignore_index}

    def loss(
        self, reduction: Any, objective: Objective = PLAIN, sampled: Sampled = EXACT, chunk_tokens: int | None = None
    ) -> Tensor:
        """Compute the cross-entropy with a reduction of `F.cross_entropy`, plus the terms of the objective."""
        return linear_cross_entropy(
            self.recipe.hidden, self.recipe.weight, reduction=reduction, class_weight=self.class_weight,
            label_smoothing=objective.label_smoothing or self.label_smoothing, z_loss=objective.z_loss,
            chunk_tokens=chunk_tokens, **sampled._asdict(), **self.options(),
        )  # fmt: skip

    def stats(self, temperatures: list[float] | None = None) -> TokenStats:
        """Compute statistics of every token, without gradients."""
        return token_stats(self.recipe.hidden, self.recipe.weight, temperatures=temperatures, **self.options())

    @torch.no_grad()
    def mean_logits(self) -> Tensor:
        """Return the mean (..., T - shift) over the classes of each token's logits, without these and without a graph.

        It is the logit of the mean weight. Under a cap it is log sum exp minus the loss of a uniform distribution.
        """
        recipe = self.recipe
        if recipe.softcap is not None:
            everywhere = self._replace(target=torch.zeros(recipe.rows, dtype=torch.long, device=recipe.hidden.device))
            return everywhere.stats().lse - everywhere._replace(label_smoothing=1.0).loss("none")
        dtype = torch.promote_types(recipe.head_dtype, torch.float32)
        hidden = recipe.hidden[..., : recipe.hidden.shape[-2] - self.shift, :] if self.shift else recipe.hidden
        mean = F.linear(hidden.to(dtype), recipe.matrix.mean(0, dtype=dtype)[None])[..., 0]
        return recipe.scale * (mean if recipe.bias is None else mean + recipe.bias.mean(dtype=dtype))

    def spread(self, stats: TokenStats) -> TokenStats:
        """Move statistics to their tokens' positions in the batch, (B, ...); other positions count as ignored."""
        lead, places = self.recipe.lead, self.recipe.places
        if places is None or lead is None:
            return stats

        def whole(part: Tensor) -> Tensor:
            missing = torch.nan if part.is_floating_point() else -1
            rest = part.shape[places.ndim :]
            result = part.new_full((lead.numel(), *rest), missing)
            result[places.reshape(-1)] = part.reshape(places.numel(), *rest)
            return result.view(*lead, *rest)

        return TokenStats(*map(whole, stats))

    def predicted(self) -> Tensor:
        """Return the targets, aligned with the logits that predict them: (..., T - shift)."""
        return self.target[..., self.shift :]

    def logprobs(self, stats: TokenStats, sampled: Sampled = EXACT) -> TokenLogprobs:
        """Return log p(target) and the entropy from `stats`, 0 where ignored, with gradients.

        The backward takes three matmuls, and four if the entropy has a gradient.
        """
        known = -stats.nll.nan_to_num(0.0, posinf=torch.inf), stats.entropy.nan_to_num(0.0)
        drawn = sampled.fixed(self.recipe)
        results = Known.apply(*known, *self.recipe.operands, self, drawn)  # type: ignore[no-untyped-call]
        return TokenLogprobs(*map(self.recipe.hooked, results))


def reduced(stats: TokenStats, reduction: str) -> Tensor:
    """Reduce statistics to the value of `Labelled.loss`, without gradients. The mean of no tokens is 0."""
    counted = stats.rank > 0
    nll = torch.where(counted, stats.nll, 0.0)
    if reduction == "none":
        return nll
    return nll.sum() if reduction == "sum" else nll.sum() / counted.sum().clamp(min=1)


class Known(Function):
    """Log-probabilities and entropies that are already computed; the backward computes the logits again, by chunks."""

    @staticmethod
    def forward(
        ctx: Any, logprobs: Tensor, entropy: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None,
        labelled: Labelled, sampled: Sampled | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias)
        ctx.labelled, ctx.sampled = labelled, sampled
        return logprobs.clone(), entropy.clone()

    @staticmethod
    def backward(ctx: Any, dlogprobs: Tensor | None, dentropy: Tensor | None) -> Any:
        for upstream in (dlogprobs, dentropy):
            if upstream is not None:
                refuse_batched(upstream)
        wanted = ctx.needs_input_grad[2:5]
        if dlogprobs is None and dentropy is None:
            return (None,) * 7
        parts = [None if x is None else x.detach() for x in ctx.saved_tensors]
        leaves = [x.requires_grad_() for x, want in zip(parts, wanted, strict=True) if x is not None and want]
        labelled: Labelled = ctx.labelled
        changed: dict[str, Any] = dict(zip(NAMES, parts, strict=True))
        labelled = labelled._replace(recipe=replace(labelled.recipe, **changed))
        sampled: Sampled = ctx.sampled or EXACT
        if sampled.generator is not None:
            sampled.generator.manual_seed(sampled.generator.initial_seed())  # a second backward repeats the first
        with torch.enable_grad():
            gradients = iter(torch.autograd.grad(weighed(labelled, sampled, dlogprobs, dentropy), leaves))
        return (None, None, *(next(gradients) if want else None for want in wanted), None, None)


def weighed(labelled: Labelled, sampled: Sampled, dlogprobs: Tensor | None, dentropy: Tensor | None) -> Tensor:
    """Return the sum of the log-probabilities and entropies, each times its upstream gradient."""
    hidden, weight = labelled.recipe.hidden, labelled.recipe.weight
    if dentropy is not None:
        both = token_logprobs(hidden, weight, entropy=True, **sampled._asdict(), **labelled.options())
        total: Tensor = (both.entropy * dentropy).sum()
        return total if dlogprobs is None else total + (both.logprobs * dlogprobs).sum()
    assert dlogprobs is not None
    token_weight = torch.zeros_like(labelled.target, dtype=dlogprobs.dtype)
    token_weight[..., labelled.shift :] = -dlogprobs
    return linear_cross_entropy(
        hidden, weight, reduction="sum", token_weight=token_weight, **sampled._asdict(), **labelled.options()
    )
