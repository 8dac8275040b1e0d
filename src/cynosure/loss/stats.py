"""Per-token statistics in one pass, without gradients and without keeping logits."""

from typing import NamedTuple

import torch
from torch import Tensor

from cynosure.loss.backends.registry import Backend, choose_backend
from cynosure.loss.batch import CountedBatch, make_batch
from cynosure.loss.chunked import given_rows
from cynosure.loss.compiler import public
from cynosure.loss.devices import autocast_to
from cynosure.loss.forward import compute_stats, logits_stats, rows_of
from cynosure.loss.jobs import check_class_indices, check_head, check_logits, matmul_dtype
from cynosure.loss.options import (
    ReduceOptions,
    RowOptions,
    accumulation_dtype,
    as_integer,
    as_positive,
    check_chunk_tokens,
    one_shift,
)
from cynosure.loss.pieces import RowStats
from cynosure.loss.targets import check_target


class TokenStats(NamedTuple):
    """Statistics of every token, of shape (...) unless noted. Ignored tokens have NaN, or -1 in integer fields."""

    nll: Tensor  # -log p(target), nats
    lse: Tensor  # log of the sum of exp(logits)
    entropy: Tensor  # of the whole distribution, nats
    rank: Tensor  # int64: 1 + the number of logits strictly above the target's, so ties share the best rank
    argmax: Tensor  # int64: the likeliest token, the first on ties
    confidence: Tensor  # probability of the likeliest token
    margin: Tensor  # difference between the two largest probabilities
    brier: Tensor  # sum over the vocabulary of (p - y)^2, y one-hot
    top_ids: Tensor  # (..., topk) int64, likeliest first
    top_logprobs: Tensor  # (..., topk)
    nll_at_temperature: Tensor  # (..., n_temperatures): nll with logits / T
    correct: Tensor  # 1.0 if argmax is the target, else 0.0; NaN if nll is


@public
def token_stats(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    shift: int = 0,
    ignore_index: int = -100,
    topk: int = 0,
    temperatures: list[float] | None = None,
    head_dtype: torch.dtype | None = None,
    backend: str | None = None,
    chunk_tokens: int | None = None,
) -> TokenStats:
    """Compute statistics of each target under the model: loss, rank, entropy, confidence and more, with one GEMM.

    Args:
        hidden: (..., D) hidden states, floating point.
        weight: (V, D) output embedding, of hidden's dtype.
        target: (...) class indices.
        bias: (V,), of hidden's dtype.
        softcap: logits become softcap * tanh(logits / softcap), after the scale. None: no cap.
        scale: logits are multiplied by it.
        shift: k pairs position t with target t + k, without copies; 1 is next-token prediction.
        ignore_index: targets of this value are ignored: their statistics are NaN, or -1 in integer fields.
        topk: number of likeliest tokens to list, at most V.
        temperatures: positive numbers that divide the logits, after the cap. None: no losses at other temperatures.
        head_dtype: dtype of the matmuls and logits, as for `linear_cross_entropy`. None: hidden's, or autocast's.
        backend: name of a backend (`cynosure info` lists them). None: the best.
        chunk_tokens: rows of logits held at once. None: chosen by size.

    Returns:
        Tensors of shape (...), or (..., T - shift) under shift; float32, or float64 for float64 inputs.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.
        IndexError: a class index is outside [0, V); the message has its position.

    Example:
        >>> import torch
        >>> stats = token_stats(torch.eye(3)[:1], torch.tensor([[3.0, 0, 0], [1.0, 0, 0]]), torch.tensor([1]), topk=2)
        >>> stats.rank, stats.top_ids
        (tensor([2]), tensor([[0, 1]]))
        >>> round(stats.nll.item(), 4)  # ln(1 + e^2)
        2.1269
    """
    head = check_head(hidden, weight, bias, head_dtype)
    chunk_tokens = check_chunk_tokens(chunk_tokens)
    rows, dtype = RowOptions(softcap=softcap, scale=scale), matmul_dtype(hidden, head_dtype)
    which = ReduceOptions(ignore_index=ignore_index, reduction="none", shift=shift)
    request = _Request.of(hidden, target, weight.shape[0], rows, which, topk, temperatures, backend, dtype)
    filled = _FilledStats(request, hidden.new_empty(0, dtype=accumulation_dtype(dtype)))
    if request.batch.target.is_abstract:
        return filled.stats()
    with torch.no_grad(), autocast_to(hidden.device, None):
        flat, head, batch = hidden.reshape(-1, hidden.shape[-1]).to(dtype), head.to(dtype), request.batch
        for chunk in rows_of(flat, head, batch, request.backend, chunk_tokens):
            index = request.classes(chunk.start, chunk.stop)
            stats = compute_stats(chunk, index, request.backend, request.options, request.topk, request.beta)
            filled.put(chunk.start, chunk.stop, stats)
    return filled.stats()


@public
def logits_token_stats(
    logits: Tensor,
    target: Tensor,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
    shift: int = 0,
    ignore_index: int = -100,
    topk: int = 0,
    temperatures: list[float] | None = None,
    backend: str | None = None,
) -> TokenStats:
    """Compute `token_stats` from existing logits; classes are the last dimension.

    The logits are not modified, and not copied as a whole: they are read block by block.

    Args:
        logits: (..., V), floating point.
        target: (...) class indices.
        softcap: logits become softcap * tanh(logits / softcap), after the scale. None: no cap.
        scale: logits are multiplied by it.
        shift: k pairs position t with target t + k, without copies; 1 is next-token prediction.
        ignore_index: targets of this value are ignored: their statistics are NaN, or -1 in integer fields.
        topk: number of likeliest tokens to list, at most V.
        temperatures: positive numbers that divide the logits, after the cap. None: no losses at other temperatures.
        backend: name of a backend (`cynosure info` lists them). None: the best.

    Returns:
        Tensors of shape (...), or (..., T - shift) under shift; float32, or float64 for float64 logits.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.
        IndexError: a class index is outside [0, V); the message has its position.

    Example:
        >>> import torch
        >>> stats = logits_token_stats(torch.tensor([[3.0, 1.0], [2.0, 2.0]]), torch.tensor([1, 0]))
        >>> stats.rank, stats.correct
        (tensor([2, 1]), tensor([0., 1.]))
    """
    check_logits(logits)
    rows = RowOptions(softcap=softcap, scale=scale)
    which = ReduceOptions(ignore_index=ignore_index, reduction="none", shift=shift)
    request = _Request.of(logits, target, logits.shape[-1], rows, which, topk, temperatures, backend, logits.dtype)
    filled = _FilledStats(request, logits.new_empty(0, dtype=accumulation_dtype(logits.dtype)))
    if request.batch.target.is_abstract:
        return filled.stats()
    with torch.no_grad():
        for start, stop, z, _ in given_rows(request.backend, logits, request.batch.inputs, request.batch.n_rows):
            index = request.classes(start, stop)
            stats = logits_stats(z, index, request.backend, request.options, request.topk, request.beta)
            filled.put(start, stop, stats)
    return filled.stats()


class _Request(NamedTuple):
    """The checked arguments: which statistics, of which rows."""

    batch: CountedBatch
    options: RowOptions
    backend: Backend
    topk: int
    beta: tuple[float, ...]  # inverse temperatures, ascending
    places: tuple[int, ...]  # position in beta of each given temperature

    @classmethod
    def of(
        cls, inputs: Tensor, target: Tensor, vocab_size: int, rows: RowOptions, which: ReduceOptions, topk: int,
        temperatures: list[float] | None, backend: str | None, dtype: torch.dtype,
    ) -> "_Request":  # fmt: skip
        """Check the arguments for inputs (..., D) or (..., V); `dtype` is that of the logits."""
        check_class_indices(target)
        one_shift(which.shift)
        topk = as_integer("topk", topk)
        if not 0 <= topk <= vocab_size:
            raise ValueError(f"topk must be an integer from 0 to {vocab_size}, the vocabulary, got {topk!r}")
        temperatures = [] if temperatures is None else [as_positive("temperatures", t) for t in temperatures]
        device, lead = inputs.device, inputs.shape[:-1]
        checked = check_target(target, lead, vocab_size, device, which.ignore_index)
        batch = make_batch(checked, lead, device, rows, which, dtype)
        if checked.invalid is not None:
            valid = ~batch.weight.isnan()
            batch = batch._replace(counted=valid if batch.counted is None else valid & batch.counted)
        order = sorted(range(len(temperatures)), key=lambda i: 1 / temperatures[i])
        beta, places = tuple(1 / temperatures[i] for i in order), tuple(map(order.index, range(len(order))))
        return cls(batch, rows, choose_backend(backend, device)[0], topk, beta, places)

    def classes(self, start: int, stop: int) -> Tensor:
        """Return the target classes (r,) of counted rows start to stop."""
        return self.batch.classes(start, stop)[:, 0]


class _FilledStats:
    """The statistics of all rows of the batch, filled block by block."""

    def __init__(self, request: _Request, like: Tensor) -> None:
        self.batch, self.places = request.batch, request.places
        topk = (request.topk,)
        widths = {"top_ids": topk, "top_logprobs": topk, "nll_at_temperature": (len(request.beta),)}
        self.parts = []
        for name in TokenStats._fields:
            dtype = torch.int64 if name in ("rank", "argmax", "top_ids") else like.dtype
            self.parts.append(like.new_empty((self.batch.n_rows, *widths.get(name, ())), dtype=dtype))

    def put(self, start: int, stop: int, stats: RowStats) -> None:
        """Store the statistics of rows start to stop. Their temperatures are ascending in 1 / T."""
        at_temperature = self.parts[TokenStats._fields.index("nll_at_temperature")]
        for whole, part in zip(self.parts, stats, strict=True):
            if whole is at_temperature:
                for i, place in enumerate(self.places):
                    whole[start:stop, i] = part[:, place]
            else:
                whole[start:stop] = part

    def stats(self) -> TokenStats:
        """Return all statistics in the shape of the result."""
        return TokenStats(*(self.batch.spread(x, torch.nan if x.is_floating_point() else -1) for x in self.parts))
