"""Per-token figures in one pass, no logits kept, no gradient."""

from typing import NamedTuple

import torch
from torch import Tensor

from cynosure.loss.forward import compute_figures, rows_of
from cynosure.loss.functional import check_head, kind, matmul_dtype
from cynosure.loss.options import ReduceOptions, RowOptions, accumulation_dtype, as_integer, as_positive
from cynosure.loss.plan import check_chunk_tokens, choose_backend
from cynosure.loss.targets import Batch, check_target, make_batch, rows_between, take_rows
from cynosure.loss.tensors import public


class TokenStats(NamedTuple):
    """Figures of every token, each (...) unless said: nats, probabilities, ids. Ignored: NaN, or -1 in integers."""

    nll: Tensor  # -log p(target), nats
    lse: Tensor  # log of the sum of exp(logits)
    entropy: Tensor  # of the whole distribution, nats
    rank: Tensor  # int64: 1 + the number of logits strictly above the target's, so ties share the best rank
    argmax: Tensor  # int64: the likeliest token, the first of equals
    confidence: Tensor  # its probability
    margin: Tensor  # the likeliest's probability less the second's
    brier: Tensor  # sum over the vocabulary of (p - y)^2, y one-hot
    top_ids: Tensor  # (..., topk) int64, likeliest first
    top_logprobs: Tensor  # (..., topk)
    nll_at_temperature: Tensor  # (..., n_temperatures): nll with logits / T


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
    backend: str | None = None,
    chunk_tokens: int | None = None,
) -> TokenStats:
    """What a model's distribution says of each target: loss, rank, entropy, confidence and more, from one GEMM.

    Arguments and errors as of `linear_cross_entropy`, class indices alone. `topk` is the number of likeliest tokens
    listed, at most V; `temperatures`, all positive, divide the logits after the cap. Figures are float32, or float64
    for float64 inputs, of shape (...), or (..., T - shift).

    >>> import torch
    >>> stats = token_stats(torch.eye(3)[:1], torch.tensor([[3.0, 0, 0], [1.0, 0, 0]]), torch.tensor([1]), topk=2)
    >>> stats.rank, stats.top_ids
    (tensor([2]), tensor([[0, 1]]))
    >>> round(stats.nll.item(), 4)  # ln(1 + e^2)
    2.1269
    """
    head = check_head(hidden, weight, bias)
    if not isinstance(target, Tensor) or target.is_floating_point():
        raise TypeError(f"target must be class indices, got {kind(target)}")
    chunk_tokens = check_chunk_tokens(chunk_tokens)
    vocab_size, topk = weight.shape[0], as_integer("topk", topk)
    if not 0 <= topk <= vocab_size:
        raise ValueError(f"topk must be an integer from 0 to {vocab_size}, the vocabulary, got {topk!r}")
    temperatures = [] if temperatures is None else [as_positive("temperatures", t) for t in temperatures]
    options = RowOptions(softcap=softcap, scale=scale)
    reduce = ReduceOptions(ignore_index=ignore_index, reduction="none", shift=shift)
    chosen, _ = choose_backend(backend, hidden.device)
    dtype, lead = matmul_dtype(hidden), hidden.shape[:-1]
    batch = make_batch(
        check_target(target, lead, vocab_size, hidden.device, ignore_index), lead, options, reduce, dtype
    )
    classes = batch.target.classes
    assert classes is not None
    figures = _Figures(batch, topk, len(temperatures), hidden.new_empty(0, dtype=accumulation_dtype(dtype)))
    if batch.target.is_abstract:
        return figures.stats()
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        rows = hidden.reshape(-1, hidden.shape[-1]).to(dtype)
        head = head.to(dtype)
        beta, order = torch.tensor([1 / t for t in temperatures], dtype=torch.float64, device=hidden.device).sort()
        for chunk in rows_of(rows, head, batch.inputs, batch.n_rows, chunk_tokens):
            at = rows_between(batch.targets, chunk.start, chunk.stop)
            index = take_rows(classes, at)[:, 0]
            found = compute_figures(chunk, index, chosen, options, topk, beta)
            nll_at_temperature = found.nll_at_temperature[:, order.argsort()]
            figures.put(chunk.start, chunk.stop, found._replace(nll_at_temperature=nll_at_temperature))
    return figures.stats()


class _Figures:
    """The figures of all tokens, filled block by block."""

    def __init__(self, batch: Batch, topk: int, n_temperatures: int, like: Tensor) -> None:
        self.batch = batch
        widths = {"top_ids": (topk,), "top_logprobs": (topk,), "nll_at_temperature": (n_temperatures,)}
        self.parts = []
        for name in TokenStats._fields:
            is_id = name in ("rank", "argmax", "top_ids")
            shape = (batch.shape.numel(), *widths.get(name, ()))
            self.parts.append(like.new_full(shape, -1, dtype=torch.int64) if is_id else like.new_full(shape, torch.nan))

    def put(self, start: int, stop: int, figures: tuple[Tensor, ...]) -> None:
        """The figures of counted rows start to stop."""
        at = rows_between(self.batch.outputs, start, stop)
        for whole, part in zip(self.parts, figures, strict=True):
            whole[at] = part.to(whole.dtype)

    def stats(self) -> TokenStats:
        """All of them, in the shape of the result."""
        return TokenStats(*(part.view((*self.batch.shape, *part.shape[1:])) for part in self.parts))
