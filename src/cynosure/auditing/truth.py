"""The truth an audit compares with: losses in float64 from the model's own logits, and how far rounding may lead."""

import math
from collections.abc import Iterator, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cynosure.auditing.batch import AuditBatch
from cynosure.auditing.subject import Subject
from cynosure.models import Head, agree, follow
from cynosure.patching import IGNORED

CHUNK = 1 << 22  # logits in float64 at a time


class OwnLogits(NamedTuple):
    """The model's own logits (B, T, V), and what they were made of, where its head is a layer of known kind."""

    logits: Tensor
    hidden: Tensor | None  # (B, T, D), what went into the head
    raw: Tensor | None  # (B, T, V), what came out of it, before scale and softcap
    auxiliary: Tensor | None  # what the model adds to its loss: a router's, weighted


def own_logits(subject: Subject, batch: AuditBatch, without: Set[str] = frozenset()) -> OwnLogits:
    """Run the model without labels, under the autocast that the loss has run it under."""
    seen: list[tuple[Tensor, Tensor]] = []

    def look(_: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            seen.append((inputs[0], output))

    head = subject.inner.get_output_embeddings()
    hook = head.register_forward_hook(look) if head is not None else None
    try:
        with subject.precision():
            output = subject.model(**subject.inputs(batch.given, without))
    finally:
        if hook is not None:
            hook.remove()
    logits = output.logits
    if logits.shape[:2] != batch.ids.shape:
        shapes = f"logits of shape {tuple(logits.shape)} for ids of {tuple(batch.ids.shape)}"
        raise ValueError(f"the model gives {shapes}: audit it without tokens of its own, such as prompt tuning adds")
    hidden, raw = seen[-1] if seen else (None, None)
    return OwnLogits(logits, hidden, raw, auxiliary_loss(subject.inner, output))


def auxiliary_loss(model: Any, output: Any) -> Tensor | None:
    """What a mixture of experts adds to its loss where `output_router_logits` is set."""
    loss, config = getattr(output, "aux_loss", None), model.config.get_text_config()
    if not isinstance(loss, Tensor) or not getattr(config, "output_router_logits", False):
        return None
    return getattr(model, "router_aux_loss_coef", getattr(config, "router_aux_loss_coef", 0.0)) * loss


class Nll(NamedTuple):
    """-log p of targets in float64; all (B, T). `size` is how large the logits are that made it."""

    nats: Tensor  # 0 where nothing is asked for
    size: Tensor
    counted: Tensor  # bool
    dtype: torch.dtype  # the coarsest that the logits went through
    n_classes: int

    @property
    def n(self) -> int:
        return int(self.counted.sum())

    @property
    def mean(self) -> float:
        return self.total / max(self.n, 1)

    @property
    def total(self) -> float:
        return float(self.nats.sum())

    def part(self, where: Tensor) -> "Nll":
        """Of some of the targets."""
        counted = self.counted & where
        return self._replace(nats=self.nats * counted, counted=counted)

    @property
    def slack(self) -> float:
        """How far rounding may lead a sum of these from another way to compute the same.

        In float32 and above a logit has many roundings, 16 of which are allowed for (as in `agree`), the sum over V
        classes sqrt(V), and all may point the same way. In half precision a logit is rounded up to three times
        (product, scale, softcap), each evenly within eps / 2: four standard deviations of their sum are 2 eps times the
        root of the sum of squares.
        """
        eps = torch.finfo(self.dtype).eps
        size = self.size[self.counted]
        if eps > 1e-6:
            return 2 * eps * float(size.norm())
        return eps * (16 * float(size.sum()) + self.n * math.sqrt(self.n_classes))


def nll_of(own: OwnLogits, target: Tensor, logits: Tensor | None = None) -> Nll:
    """-log p(target) under the model's logits, or others in their place; target (B, T), -100 where there is none."""
    logits = own.logits if logits is None else logits
    counted = target != IGNORED
    nats = torch.zeros(target.shape, dtype=torch.float64, device=logits.device)
    size = torch.zeros_like(nats)
    for rows, columns in chunks(counted, logits.shape[-1]):
        z = logits[rows, columns].double()
        picked = z.gather(1, target[rows, columns][:, None])[:, 0]
        lse = z.logsumexp(1)
        nats[rows, columns] = lse - picked
        p = (z - lse[:, None]).exp()
        size[rows, columns] = 1 + picked.abs() + (p * z).nan_to_num(0.0).abs().sum(1)  # -inf may rule a token out
    return Nll(nats, size, counted, coarsest(own), logits.shape[-1])


def chunks(where: Tensor, n_classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The places in a (B, T) mask, a few at a time: their rows and columns."""
    for part in torch.split(where.nonzero(), max(1, CHUNK // n_classes)):
        yield part[:, 0], part[:, 1]


def coarsest(own: OwnLogits) -> torch.dtype:
    tensors = [x for x in (own.logits, own.hidden, own.raw) if x is not None]
    return max((x.dtype for x in tensors), key=lambda dtype: torch.finfo(dtype).eps)


def d_logits(logits: Tensor, target: Tensor) -> Tensor:
    """The gradient of the mean loss, (B, T, V), made in float64 and rounded to the logits' dtype."""
    found, counted = torch.zeros_like(logits), target != IGNORED
    for rows, columns in chunks(counted, logits.shape[-1]):
        p = logits[rows, columns].double().softmax(1)
        p[torch.arange(len(p)), target[rows, columns]] -= 1
        found[rows, columns] = (p / counted.sum()).to(found.dtype)
    return found


def split_of(subject: Subject, batch: AuditBatch, own: OwnLogits) -> tuple[Tensor, Head] | None:
    """The hidden states and the head that logits are made of, verified on these; None where they are not known."""
    try:
        with subject.precision():
            recipe = follow(subject.inner, lambda: subject.model(**subject.inputs(batch.given)))
            head = Head.of_recipe(recipe)
            ours = head.logits(recipe.hidden)
    except ValueError:
        return None
    found = agree(ours.float(), own.logits.float(), coarsest(own))
    return (recipe.hidden, head) if found else None


def reduced(head: Head) -> Iterator[tuple[tuple[str, ...], Head]]:
    """The head without one, two or all of what it has beyond its weight, by the names of these."""
    without: dict[str, Any] = {}
    if head.scale != 1:
        without["scale"] = 1.0
    if head.softcap is not None:
        without["softcap"] = None
    if head.bias is not None:
        without["bias"] = None
    names = list(without)
    for chosen in range(1, 1 << len(names)):
        picked = tuple(name for i, name in enumerate(names) if chosen >> i & 1)
        yield picked, head._replace(**{name: without[name] for name in picked})
