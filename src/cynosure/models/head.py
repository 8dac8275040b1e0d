"""How a model turns hidden states into logits: a body, and a head that is verified before it is used."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cynosure.loss import TokenStats, token_stats
from cynosure.models.cpu import fast_cpu

# Configuration names under which models keep a factor of the logits; some multiply by it, others divide.
SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
DIVIDING = {"logits_scaling"}
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


class Head(NamedTuple):
    """logits = cap(scale * (hidden @ weight.T + bias)), with cap(x) = softcap * tanh(x / softcap), or x itself."""

    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    scale: float
    softcap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V), in full: for a few tokens only."""
        z = self.scale * nn.functional.linear(hidden, self.weight, self.bias)
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    def stats(self, hidden: Tensor, target: Tensor, **options: Any) -> TokenStats:
        """`token_stats` of these logits, none of which is kept; options as there."""
        return token_stats(
            hidden, self.weight, target, bias=self.bias, scale=self.scale, softcap=self.softcap, **options
        )


def hidden_states(model: Any, input_ids: Tensor) -> Tensor:
    """What goes into the head: (B, T) token ids -> (B, T, D).

    No attention mask: every model here is causal (`read_head` verifies it), so that padding on the right reaches no
    token that is scored, and without a mask attention takes its fast path.
    """
    with fast_cpu(input_ids.device):
        states: Tensor = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    return states


def read_head(model: Any) -> Head:
    """The head of a causal language model: its own weight and bias, scale and softcap as its configuration says.

    Verified on a few tokens against the model's own logits. Raises ValueError, with the reason, when the model has no
    such head, when the logits differ, or when the hidden states see later tokens.
    """
    layer = model.get_output_embeddings()
    weight = getattr(layer, "weight", None)
    name = type(model).__name__
    if model.base_model is model:
        raise ValueError(f"{name} has no body apart from its head")
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(f"{name} has no plain output matrix: its head cannot be computed apart from the model")
    vocab_size = weight.shape[0]
    ids = torch.linspace(vocab_size // 8, vocab_size // 2, 8, device=weight.device).long()[None]
    with torch.no_grad(), fast_cpu(ids.device):  # for all: the rounding of other products could tell them apart
        theirs = model(input_ids=ids, use_cache=False).logits.float()
        hidden = hidden_states(model, ids)
        earlier = hidden_states(model, ids[:, :4])
        check_causal(name, hidden, earlier)
        if hidden.shape[-1] != weight.shape[1]:
            raise ValueError(f"{name}: hidden states of {hidden.shape[-1]} do not fit a head of {weight.shape[1]}")
        rows = theirs.shape[-1]  # some models compute a padded vocabulary and drop its end
        bias = getattr(layer, "bias", None)
        for scale, softcap in candidates(model.config.get_text_config()):
            head = Head(weight[:rows], None if bias is None else bias[:rows], scale, softcap)
            if agree(head.logits(hidden).float(), theirs, weight.dtype):
                return head
    raise ValueError(f"{name} turns hidden states into logits in a way that is not known here")


def check_causal(name: str, hidden: Tensor, earlier: Tensor) -> None:
    """ValueError when the states of the first 4 tokens are others with more tokens behind them."""
    if (hidden[:, :4] - earlier).norm() > 0.1 * earlier.norm():
        raise ValueError(f"{name} is not causal: its hidden states depend on the tokens that follow")


def candidates(config: Any) -> Iterator[tuple[float, float | None]]:
    """(scale, softcap) as the configuration may mean them, the likeliest first."""
    values = {name: getattr(config, name, None) for name in (*SCALES, *SOFTCAPS)}
    numbers = {name: float(x) for name, x in values.items() if isinstance(x, int | float) and x > 0}
    scales: list[float] = []
    for name in SCALES:
        if name in numbers:
            pair = numbers[name], 1 / numbers[name]
            scales += pair[::-1] if name in DIVIDING else pair
    softcaps = [numbers[name] for name in SOFTCAPS if name in numbers]
    for softcap in (*softcaps, None):
        for scale in (*scales, 1.0):
            yield scale, softcap


def agree(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    """Equal to the rounding of a few operations in the model's dtype."""
    tolerance = 16 * torch.finfo(dtype).eps * theirs.abs().max()
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= tolerance)
