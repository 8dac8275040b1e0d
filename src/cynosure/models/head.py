"""How a model turns hidden states into logits: a backbone, and a head that is verified before it is used.

Where one ends and the other begins is seen in the model's own forward, as `patch` sees it: the product that makes
logits is put off, so that what enters it are the hidden states, and what follows is noted.
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

CACHING: WeakSet[Any] = WeakSet()  # models that fail without a cache, as xLSTM in half precision
N_PROBED = 32  # tokens, the last half of which is changed and cut to see whether the first half depends on it


class Head(NamedTuple):
    """logits = cap(scale * (hidden @ weight.T + bias)), with cap(x) = softcap * tanh(x / softcap), or x itself."""

    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    scale: float
    softcap: float | None

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> "Head":
        bias = None if recipe.bias is None else recipe.bias.detach()
        # A model divides by its softcap and multiplies by it again, which may change the last bit of 1.
        scale = 1.0 if abs(recipe.scale - 1) < 1e-15 else recipe.scale
        return cls(recipe.weight.detach(), bias, scale, recipe.softcap)

    def equals(self, other: "Head") -> bool:
        return self[2:] == other[2:] and all(map(same, self[:2], other[:2]))

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V), in full: for a few tokens only."""
        return capped(nn.functional.linear(hidden, self.weight, self.bias), self.scale, self.softcap)

    def stats(self, hidden: Tensor, target: Tensor, **options: Any) -> TokenStats:
        """`token_stats` of these logits, none of which is kept; options as there."""
        return token_stats(
            hidden, self.weight, target, bias=self.bias, scale=self.scale, softcap=self.softcap, **options
        )


def same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return place(a) == place(b) or torch.equal(a, b)


class Tracer:
    """Who puts logits off to see what they are made of: an `Owner` of stand-ins."""

    def __init__(self) -> None:
        self.deferred = 0
        self.obstacle: str | None = None
        self.objective = PLAIN
        self.asked: list[str] = []  # what has asked for full logits

    def tell(self, why: str) -> None:
        self.asked.append(why)

    def loss(self, asked: Asked) -> Tensor:
        return asked.labelled.loss(asked.reduction)

    def why_not(self) -> str:
        """Why the last forward gave logits that are made."""
        if self.asked:
            return f"between its head and its logits, {self.asked[0]} needs them in full"
        return self.obstacle or "its logits are not those of its head"


def forward(model: Any, input_ids: Tensor, **inputs: Any) -> Any:
    """The output of a model that keeps no cache of keys and values, or one where it cannot run without.

    ValueError where it cannot run on ids at all.
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
    """What a causal language model's logits (B, T, V) are made of; its forward is run, and they are not made.

    ValueError, with the reason, where the model makes them in a way that cannot be followed.
    """
    with fast_cpu(input_ids.device):
        return follow(model, lambda: forward(model, input_ids, **inputs))


def follow(model: Any, call: Callable[[], Any]) -> Recipe:
    """The same of a call of the model."""
    tracer = Tracer()
    with Deferring(model, tracer):
        logits = getattr(call(), "logits", None)
    if isinstance(logits, PendingLogits) and logits.made is None:
        return logits.recipe
    if logits is None:
        why = "its forward gives no logits; where it is a backbone, give its head too"
    else:
        why = tracer.why_not()
    raise ValueError(f"{type(model).__name__} cannot be split into backbone and head: {why}")


def hidden_states(model: Any, input_ids: Tensor) -> Tensor:
    """What goes into the head: (B, T) token ids -> (B, T, D), as the head's product gets it.

    No attention mask: every model here is causal (`read_head` verifies it), so that padding on the right reaches no
    token that is scored, and without a mask attention takes its fast path.
    """
    return trace(model, input_ids).hidden


@torch.no_grad()
def read_head(model: Any, name: str | None = None) -> Head:
    """The head of a causal language model: weight and bias, scale and softcap, as its own forward applies them.

    Verified on a few tokens against the model's own logits. Raises ValueError, with the reason, when the model has no
    such head, when it gives NaN or overflows, when the logits differ, or when the hidden states see later tokens;
    `name` is what errors call it, by default its class.
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
    with fast_cpu(ids.device):  # for both: the rounding of other products could tell them apart
        ours = head.logits(recipe.hidden).float()
        theirs = forward(model, ids).logits.float()
    check_finite(model, name, theirs, lambda: trace(model, ids))
    if not agree(ours, theirs, head.weight.dtype):
        raise ValueError(f"{name} cannot be split into backbone and head: {difference(ours, theirs)}")
    return head


@torch.no_grad()
def current_head(model: Any) -> Head:
    """The head of a model that `read_head` has verified, its weights as they are now."""
    return Head.of_recipe(trace(model, probed_ids(model)[:, :2]))


def probed_ids(model: Any) -> Tensor:
    """(1, T) ids that a model is sure to know, spread over its vocabulary."""
    config = model.config.get_text_config()
    n_rows = embedding_rows(model) or config.vocab_size
    most = getattr(config, "max_position_embeddings", None) or N_PROBED
    n_tokens = min(N_PROBED, most if most > 1 else N_PROBED)  # -1 is for no limit
    ids = torch.linspace(n_rows // 8, n_rows // 2, n_tokens, device=input_device(model))
    return ids.long()[None]


def check_causal(name: str, hidden: Tensor, other: Tensor) -> None:
    """ValueError when the states of the same tokens are others with other and fewer tokens behind them."""
    tolerance = torch.finfo(hidden.dtype).eps ** 0.5
    if (hidden - other).float().norm() > tolerance * hidden.float().norm():
        raise ValueError(
            f"{name} is not causal: its hidden states depend on the tokens that follow, or on how many there are"
        )


def agree(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    """Equal to the rounding of a few operations in the model's dtype."""
    tolerance = 16 * torch.finfo(dtype).eps * finite_part(theirs).abs().max()
    return ours.shape == theirs.shape and bool(error_of(ours, theirs).abs().max() <= tolerance)


def error_of(ours: Tensor, theirs: Tensor) -> Tensor:
    """ours - theirs, 0 where both are the same infinity: a class that both rule out."""
    return (ours - theirs).masked_fill(ours == theirs, 0.0)


def finite_part(x: Tensor) -> Tensor:
    """x with 0 where it is infinite, so that its largest value and its norm are a scale for errors."""
    return x.masked_fill(x.isinf(), 0.0)


def difference(ours: Tensor, theirs: Tensor) -> str:
    if ours.shape != theirs.shape:
        return f"its logits are of shape {tuple(theirs.shape)}, those of its head {tuple(ours.shape)}"
    return f"its logits differ from those of its head by up to {error_of(ours, theirs).abs().max():.3g}"
