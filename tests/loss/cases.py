"""Random batches of every kind the loss takes, and one way to run an operation on them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

KINDS = ("indices", "dense", "sparse")
REDUCTIONS = ("mean", "sum", "none")
# Named alone, these are tensors that a loss can be differentiated by.
LEAVES = ("hidden", "weight", "bias", "token_weight", "probability")  # the last: of a target that has them


@dataclass(frozen=True)
class Case:
    hidden: Tensor  # (..., D)
    weight: Tensor  # (V, D)
    target: Any
    options: dict[str, Any] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()  # leaves that no gradient is asked for

    def leaves(self) -> dict[str, Tensor]:
        named = {"hidden": self.hidden, "weight": self.weight, "probability": self.probability(), **self.options}
        return {name: named[name] for name in LEAVES if named.get(name) is not None and name not in self.frozen}

    def with_leaves(self, leaves: dict[str, Tensor]) -> "Case":
        others = {k: v for k, v in leaves.items() if k not in ("hidden", "weight", "probability")}
        target = leaves.get("probability", self.target)
        if isinstance(self.target, tuple):
            target = self.target[0], leaves.get("probability", self.target[1])
        return replace(
            self,
            hidden=leaves.get("hidden", self.hidden),
            weight=leaves.get("weight", self.weight),
            target=target,
            options={**self.options, **others},
        )

    def probability(self) -> Tensor | None:
        """The target's probabilities, if it has any."""
        probability = self.target[1] if isinstance(self.target, tuple) else self.target
        return probability if torch.is_tensor(probability) and probability.is_floating_point() else None

    def without(self, *names: str) -> "Case":
        return replace(self, options={k: v for k, v in self.options.items() if k not in names})

    def freeze(self, *names: str) -> "Case":
        return replace(self, frozen=names)

    def using(self, **options: Any) -> "Case":
        return replace(self, options={**self.options, **options})

    def to(self, dtype: torch.dtype) -> "Case":
        """hidden, weight and bias in another dtype."""
        constant = ("token_weight", "probability")
        return self.with_leaves({k: v.to(dtype) for k, v in self.leaves().items() if k not in constant})

    def double(self) -> "Case":
        """Everything in float64, the same values."""
        return self.cast(torch.float64)

    def cast(self, dtype: torch.dtype) -> "Case":
        """Everything that is floating point in another dtype."""

        def cast(x: Any) -> Any:
            if isinstance(x, tuple):
                return tuple(cast(y) for y in x)
            return x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x

        options = {name: cast(x) for name, x in self.options.items()}
        return Case(cast(self.hidden), cast(self.weight), cast(self.target), options, self.frozen)

    def call(self, op: Callable[..., Any], **more: Any) -> Any:
        return op(self.hidden, self.weight, self.target, **{**self.options, **more})


def make_target(
    kind: str, lead: tuple[int, ...], vocab_size: int, ignore_index: int = -100, ignored: float = 0.3
) -> Any:
    """Indices of which some are ignored; probabilities; or a pair in which indices may repeat within a row."""
    if kind == "indices":
        target = torch.randint(vocab_size, lead)
        return torch.where(torch.rand(lead) < ignored, ignore_index, target)
    if kind == "dense":
        return torch.randn(*lead, vocab_size, dtype=torch.float64).softmax(-1)
    k = min(3, vocab_size + 1)  # more entries than classes when V is small: duplicates for certain
    probabilities = torch.rand(*lead, k, dtype=torch.float64)
    return torch.randint(vocab_size, (*lead, k)), probabilities / probabilities.sum(-1, keepdim=True)


def make_case(
    *,
    lead: tuple[int, ...] = (9,),
    d: int = 5,
    v: int = 7,
    kind: str = "indices",
    std: float = 1.5,
    ignored: float = 0.3,
    seed: int = 0,
    bias: bool = False,
    class_weight: bool = False,
    token_weight: bool = False,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Case:
    """Logits of about `std`. class_weight has a zero, token_weight zeros and (but for a mean) a negative."""
    torch.manual_seed(seed)
    f64 = torch.float64
    hidden = torch.randn(*lead, d, dtype=f64)
    weight = torch.randn(v, d, dtype=f64) * std / d**0.5
    ignore_index = options.get("ignore_index", -100)
    target = make_target(kind, lead, v, ignore_index, ignored)
    if bias:
        options["bias"] = torch.randn(v, dtype=f64)
    if class_weight:
        options["class_weight"] = torch.rand(v, dtype=f64) + 0.5
        if v > 2:
            options["class_weight"][1] = 0.0
    if token_weight:
        weights = torch.rand(lead, dtype=f64) + 0.5
        if options.get("reduction", "mean") != "mean" and prod(lead) > 1:
            weights.view(-1)[0] *= -1  # an advantage may be negative
        options["token_weight"] = torch.where(torch.rand(lead) < 0.2, 0.0, weights)
    return Case(hidden, weight, target, options).to(dtype)


def ids_case(k: int = 3, ignored: float = 0.3, **options: Any) -> Case:
    """K given ids for each token, some of them ignored; those of the first token repeat, and the second has none."""
    case = make_case(**{"ignored": 0.0, "bias": True, **options})
    ignore_index = options.get("ignore_index", -100)
    ids = torch.randint(len(case.weight), (*case.target.shape, k))
    ids = torch.where(torch.rand(ids.shape) < ignored, ignore_index, ids)
    flat = ids.view(-1, k)
    if len(flat) > 1 and ignored:
        flat[0], flat[1] = len(case.weight) - 1, ignore_index
    return replace(case, target=ids)


def joined(op: Callable[..., Any], **how: Any) -> Callable[..., Tensor]:
    """Log-probabilities and entropies as one tensor (..., K + 1): one upstream gradient reaches both."""

    def call(*args: Any, **options: Any) -> Tensor:
        logprobs, entropy = op(*args, entropy=True, **options, **how)
        logprobs = logprobs[..., None] if logprobs.dim() == entropy.dim() else logprobs
        return torch.cat([logprobs, entropy[..., None]], -1)

    return call


@dataclass(frozen=True)
class Result:
    loss: Tensor
    grads: dict[str, Tensor]

    def named(self) -> dict[str, Tensor]:
        return {"loss": self.loss, **{f"d{name}": g for name, g in self.grads.items()}}


def upstream_like(loss: Tensor, seed: int = 1) -> Tensor:
    """An upstream gradient of no special value: 1 would hide an operation that ignores it."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(loss.shape, generator=generator, dtype=torch.float64, device="cpu").to(loss) + 0.3


def evaluate(op: Callable[..., Tensor], case: Case, upstream: Tensor | None = None, **more: Any) -> Result:
    """Loss and the gradient of every leaf, which are fresh copies, under one arbitrary upstream gradient."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in case.leaves().items()}
    loss = case.with_leaves(leaves).call(op, **more)
    upstream = upstream_like(loss) if upstream is None else upstream.to(loss)
    grads = torch.autograd.grad(loss, list(leaves.values()), upstream)
    return Result(loss.detach(), dict(zip(leaves, grads, strict=True)))


def assert_same(ours: Result, truth: Result, tol: float = 1e-12) -> None:
    for (name, x), y in zip(ours.named().items(), truth.named().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=tol, atol=tol, msg=lambda m, name=name: f"{name}: {m}")
