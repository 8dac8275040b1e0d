"""Split a model into a backbone and a head, which is verified before use.

The split is traced in the model's own forward, as `patch` does it. The matmul that computes the logits is deferred:
its input is the hidden states, and the operations after it are recorded.
"""

from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn

from cynosure.loss import TokenStats, capped, place, token_stats
from cynosure.models.cpu import fast_cpu
from cynosure.models.finite import check_finite
from cynosure.patching import (
    CACHE_OPTIONS,
    PLAIN,
    Asked,
    Deferring,
    PendingLogits,
    Recipe,
    embedding_rows,
    input_device,
)

CACHING: WeakSet[Any] = WeakSet()  # models that fail without a cache, for example xLSTM in half precision
N_PROBED = 32  # tokens; the second half is changed and cut to test whether the first half depends on it


class Head(NamedTuple):
    """logits = cap(scale * (hidden @ weight.T + bias)), with cap(x) = softcap * tanh(x / softcap), or x itself."""

    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    scale: float
    softcap: float | None

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> "Head":
        bias = None if recipe.bias is None else recipe.bias.detach()
        # Models divide by their softcap and multiply by it again, which may change the last bit of a scale of 1.
        scale = 1.0 if abs(recipe.scale - 1) < 1e-15 else recipe.scale
        return cls(recipe.weight.detach(), bias, scale, recipe.softcap)

    def equals(self, other: "Head") -> bool:
        return self[2:] == other[2:] and all(map(same, self[:2], other[:2]))

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute full logits, (..., D) -> (..., V); only for a few tokens."""
        return capped(nn.functional.linear(hidden, self.weight, self.bias), self.scale, self.softcap)

    def stats(self, hidden: Tensor, target: Tensor, **options: Any) -> TokenStats:
        """Call `token_stats` with this head; it does not materialize the logits. Options are those of `token_stats`."""
        return token_stats(
            hidden, self.weight, target, bias=self.bias, scale=self.scale, softcap=self.softcap, **options
        )


def same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return place(a) == place(b) or torch.equal(a, b)


class Tracer:
    """An `Owner` of deferred logits that only traces how a model computes them."""

    def __init__(self) -> None:
        self.deferred = 0
        self.obstacle: str | None = None
        self.objective = PLAIN
        self.head_dtype: torch.dtype | None = None
        self.needs_full: list[str] = []  # operations that needed full logits

    def tell(self, why: str) -> None:
        self.needs_full.append(why)

    def loss(self, asked: Asked) -> Tensor:
        return asked.labelled.loss(asked.reduction)

    def why_not(self) -> str:
        """Say why the last forward materialized its logits."""
        if self.needs_full:
            return f"between its head and its logits, {self.needs_full[0]} needs them in full"
        return self.obstacle or "its logits are not those of its head"


def forward(model: Any, input_ids: Tensor, **inputs: Any) -> Any:
    """Run a model without a cache of keys and values, or with one if it cannot run without.

    Raises ValueError if it cannot run on ids at all.
    """
    for options in CACHE_OPTIONS[:1] if model in CACHING else CACHE_OPTIONS[::-1]:
        try:
            output = model(input_ids=input_ids, **options, **inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            failure = error
            continue
        if not options:
            CACHING.add(model)
        return output
    name = type(model).__name__
    raise ValueError(f"{name} cannot be split into backbone and head: its forward fails on ids: {failure}") from failure


def trace(model: Any, input_ids: Tensor, **inputs: Any) -> Recipe:
    """Run a causal language model and return how it computes its logits (B, T, V), without materializing them.

    Raises ValueError, with the reason, if the computation cannot be traced.
    """
    with fast_cpu(input_ids.device):
        return follow(model, lambda: forward(model, input_ids, **inputs))


def follow(model: Any, call: Callable[[], Any]) -> Recipe:
    """Trace a call of the model, as `trace` does."""
    tracer = Tracer()
    with Deferring(model, tracer):
        logits = getattr(call(), "logits", None)
    if isinstance(logits, PendingLogits) and logits.made is None:
        return logits.recipe
    if logits is None:
        why = "its forward gives no logits; if it is only a backbone, pass its head too"
    else:
        why = tracer.why_not()
    raise ValueError(f"{type(model).__name__} cannot be split into backbone and head: {why}")


def hidden_states(model: Any, input_ids: Tensor) -> Tensor:
    """Return the input of the head's matmul: (B, T) token ids -> (B, T, D) hidden states.

    No attention mask is needed: `read_head` verifies that the model is causal, so padding on the right reaches no
    scored token. Without a mask, attention takes its fast path.
    """
    return trace(model, input_ids).hidden


@torch.no_grad()
def read_head(model: Any, name: str | None = None) -> Head:
    """Read weight, bias, scale and softcap of a model's head from its forward, and verify them on a few tokens.

    Raises ValueError, with the reason, if the model has no such head, gives NaN or overflows, if the logits differ from
    its own, or if hidden states depend on later tokens. Errors call the model `name`, by default its class.
    """
    name, ids = name or type(model).__name__, probed_ids(model)
    recipe = trace(model, ids)
    check_finite(model, name, recipe.hidden, lambda: trace(model, ids))
    if recipe.hidden.shape[:-1] != ids.shape:
        shapes = f"{tuple(recipe.hidden.shape)} for ids of shape {tuple(ids.shape)}"
        raise ValueError(f"{name} cannot be split into backbone and head: its hidden states are of shape {shapes}")
    half = ids.shape[1] // 2
    later = trace(model, torch.cat([ids[:, :half], ids[:, :half].flip(1)[:, : half // 2]], 1))
    check_causal(name, recipe.hidden[:, :half], later.hidden[:, :half])
    head = Head.of_recipe(recipe)
    if not head.equals(Head.of_recipe(later)):
        raise ValueError(
            f"{name} cannot be split into backbone and head: what it does to its logits depends on the text"
        )
    with fast_cpu(ids.device):  # for both, so that they round in the same way
        ours = head.logits(recipe.hidden).float()
        theirs = forward(model, ids).logits.float()
    check_finite(model, name, theirs, lambda: trace(model, ids))
    if not agree(ours, theirs, head.weight.dtype):
        raise ValueError(f"{name} cannot be split into backbone and head: {difference(ours, theirs)}")
    return head


@torch.no_grad()
def current_head(model: Any) -> Head:
    """Return the head of a model that `read_head` has verified, with its current weights."""
    return Head.of_recipe(trace(model, probed_ids(model)[:, :2]))


def probed_ids(model: Any) -> Tensor:
    """Return (1, T) ids that a model surely has, spread over its vocabulary."""
    config = model.config.get_text_config()
    n_rows = embedding_rows(model) or config.vocab_size
    most = getattr(config, "max_position_embeddings", None) or N_PROBED
    n_tokens = min(N_PROBED, most if most > 1 else N_PROBED)  # -1 means no limit
    ids = torch.linspace(n_rows // 8, n_rows // 2, n_tokens, device=input_device(model))
    return ids.long()[None]


def check_causal(name: str, hidden: Tensor, other: Tensor) -> None:
    """Raise ValueError if hidden states change when the tokens after them are changed and cut."""
    tolerance = torch.finfo(hidden.dtype).eps ** 0.5
    if (hidden - other).float().norm() > tolerance * hidden.float().norm():
        raise ValueError(
            f"{name} is not causal: its hidden states depend on the tokens that follow, or on how many there are"
        )


def agree(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    """Whether logits are equal within the rounding of a few operations in the model's dtype."""
    tolerance = 16 * torch.finfo(dtype).eps * finite_part(theirs).abs().max()
    return ours.shape == theirs.shape and bool(error_of(ours, theirs).abs().max() <= tolerance)


def error_of(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return ours - theirs, and 0 where both are the same infinity: a class that both rule out."""
    return (ours - theirs).masked_fill(ours == theirs, 0.0)


def finite_part(x: Tensor) -> Tensor:
    """Return x with 0 for infinities, so that its largest value and its norm are a scale for errors."""
    return x.masked_fill(x.isinf(), 0.0)


def difference(ours: Tensor, theirs: Tensor) -> str:
    if ours.shape != theirs.shape:
        return f"its logits are of shape {tuple(theirs.shape)}, those of its head {tuple(ours.shape)}"
    return f"its logits differ from those of its head by up to {error_of(ours, theirs).abs().max():.3g}"
