"""Compute the reference: losses in float64 from the model's own logits, and the rounding that is allowed."""

import math
from collections.abc import Iterator, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cynosure.auditing.batch import AuditBatch
from cynosure.auditing.subject import Subject
from cynosure.models import Head, agree, follow
from cynosure.patching import IGNORED

CHUNK = 1 << 22  # float64 logits in memory at a time


class OwnLogits(NamedTuple):
    """The model's own logits (B, T, V), and the input and output of its head if that is a layer."""

    logits: Tensor
    hidden: Tensor | None  # (B, T, D), the input of the head
    raw: Tensor | None  # (B, T, V), the output of the head, before scale and softcap
    auxiliary: Tensor | None  # the weighted auxiliary loss of a router, which the model adds to its loss


def own_logits(subject: Subject, batch: AuditBatch, without: Set[str] = frozenset()) -> OwnLogits:
    """Run the model without labels, in the autocast in which the loss ran it."""
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
        raise ValueError(f"the model gives {shapes}: audit it without virtual tokens, such as prompt tuning adds")
    hidden, raw = seen[-1] if seen else (None, None)
    return OwnLogits(logits, hidden, raw, auxiliary_loss(subject.inner, output))


def auxiliary_loss(model: Any, output: Any) -> Tensor | None:
    """Return the loss that a mixture of experts adds to its own if `output_router_logits` is set."""
    loss, config = getattr(output, "aux_loss", None), model.config.get_text_config()
    if not isinstance(loss, Tensor) or not getattr(config, "output_router_logits", False):
        return None
    return getattr(model, "router_aux_loss_coef", getattr(config, "router_aux_loss_coef", 0.0)) * loss


class Nll(NamedTuple):
    """-log p of the targets in float64; all (B, T). `size` is the magnitude of the logits behind each value."""

    nats: Tensor  # 0 where there is no target
    size: Tensor
    counted: Tensor  # bool
    dtype: torch.dtype  # the coarsest dtype on the way to the logits
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
        """Keep only the targets where a mask is true."""
        counted = self.counted & where
        return self._replace(nats=self.nats * counted, counted=counted)

    @property
    def slack(self) -> float:
        """The largest difference that rounding may cause between this sum and the same sum computed another way.

        In float32 and above, 16 roundings are allowed for each logit (as in `agree`) and sqrt(V) for the sum over V
        classes, all with the same sign. In half precision a logit is rounded up to three times (matmul, scale,
        softcap), each time uniformly within eps / 2. Four standard deviations of their sum are 2 eps times the root of
        the sum of squares.
        """
        eps = torch.finfo(self.dtype).eps
        size = self.size[self.counted]
        if eps > 1e-6:
            return 2 * eps * float(size.norm())
        return eps * (16 * float(size.sum()) + self.n * math.sqrt(self.n_classes))


def nll_of(own: OwnLogits, target: Tensor, logits: Tensor | None = None) -> Nll:
    """Return -log p of targets (B, T), -100 where there is none, under the model's logits or the given ones."""
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
    """Yield the rows and columns where a (B, T) mask is true, a few at a time."""
    for part in torch.split(where.nonzero(), max(1, CHUNK // n_classes)):
        yield part[:, 0], part[:, 1]


def coarsest(own: OwnLogits) -> torch.dtype:
    tensors = [x for x in (own.logits, own.hidden, own.raw) if x is not None]
    return max((x.dtype for x in tensors), key=lambda dtype: torch.finfo(dtype).eps)


def d_logits(logits: Tensor, target: Tensor) -> Tensor:
    """Return the gradient of the mean loss, (B, T, V), computed in float64 and rounded to the dtype of the logits."""
    gradient, counted = torch.zeros_like(logits), target != IGNORED
    for rows, columns in chunks(counted, logits.shape[-1]):
        p = logits[rows, columns].double().softmax(1)
        p[torch.arange(len(p)), target[rows, columns]] -= 1
        gradient[rows, columns] = (p / counted.sum()).to(gradient.dtype)
    return gradient


def split_of(subject: Subject, batch: AuditBatch, own: OwnLogits) -> tuple[Tensor, Head] | None:
    """Return hidden states and head, verified to give the model's logits; None if they cannot be read."""
    try:
        with subject.precision():
            recipe = follow(subject.inner, lambda: subject.model(**subject.inputs(batch.given)))
            head = Head.of_recipe(recipe)
            ours = head.logits(recipe.hidden)
    except ValueError:
        return None
    same = agree(ours.float(), own.logits.float(), coarsest(own))
    return (recipe.hidden, head) if same else None


def reduced(head: Head) -> Iterator[tuple[tuple[str, ...], Head]]:
    """Yield the head without each combination of its scale, softcap and bias, and the names of those."""
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
