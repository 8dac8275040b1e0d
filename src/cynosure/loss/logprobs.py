"""Log-probabilities of the target, or of given ids, and the entropy: check, compute, spread.

... leading shape, N tokens in all, D hidden size, V vocabulary, K given ids of each token
"""

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from cynosure.loss.autograd import FusedLogprobs, LogitsLogprobs, Shapes, apply, apply_pair
from cynosure.loss.chunked import LossJob
from cynosure.loss.compiler import public
from cynosure.loss.functional import cross_entropy, linear_cross_entropy
from cynosure.loss.jobs import check_class_indices, linear_job, logits_job, sampled
from cynosure.loss.linear import HeadWeights
from cynosure.loss.options import ReduceOptions, RowOptions, accumulation_dtype, as_number, as_positive, one_shift
from cynosure.loss.sampling.options import GradTolerance
from cynosure.loss.targets import GivenIds, is_index


class TokenLogprobs(NamedTuple):
    """Log-probabilities and the entropy of every token, in nats."""

    logprobs: Tensor  # (...), or (..., K) of given ids; 0.0 where ignored
    entropy: Tensor  # (...) of the whole distribution; 0.0 where ignored


@overload
def token_logprobs(
    hidden: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor | None = None, softcap: float | None = None,
    scale: float = 1.0, temperature: float = 1.0, entropy: Literal[False] = False, shift: int = 0,
    ignore_index: int = -100, head_dtype: torch.dtype | None = None, backend: str | None = None,
    chunk_tokens: int | None = None, grad_tolerance: GradTolerance = 0.0, generator: torch.Generator | None = None,
) -> Tensor: ...  # fmt: skip


@overload
def token_logprobs(
    hidden: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor | None = None, softcap: float | None = None,
    scale: float = 1.0, temperature: float = 1.0, entropy: Literal[True], shift: int = 0,
    ignore_index: int = -100, head_dtype: torch.dtype | None = None, backend: str | None = None,
    chunk_tokens: int | None = None, grad_tolerance: GradTolerance = 0.0, generator: torch.Generator | None = None,
) -> TokenLogprobs: ...  # fmt: skip


@overload
def token_logprobs(
    hidden: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor | None = None, softcap: float | None = None,
    scale: float = 1.0, temperature: float = 1.0, entropy: bool, shift: int = 0,
    ignore_index: int = -100, head_dtype: torch.dtype | None = None, backend: str | None = None,
    chunk_tokens: int | None = None, grad_tolerance: GradTolerance = 0.0, generator: torch.Generator | None = None,
) -> Tensor | TokenLogprobs: ...  # fmt: skip


@public
def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    temperature: float = 1.0,
    entropy: bool = False,
    shift: int = 0,
    ignore_index: int = -100,
    head_dtype: torch.dtype | None = None,
    backend: str | None = None,
    chunk_tokens: int | None = None,
    grad_tolerance: GradTolerance = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor | TokenLogprobs:
    """Compute log p(target) of every token in nats, differentiably: the input of `cynosure.losses`.

    With K given ids for each token, their K log-probabilities; with `entropy`, also the entropy of the distribution.
    All come from one pass: one matmul in the forward, three in the backward.

    A weighted sum of log p(target) whose weights are known before the call, for example advantages of any sign, takes
    three matmuls instead of four: `-linear_cross_entropy(..., reduction="sum", token_weight=weights)`.

    Args:
        hidden: (..., D) hidden states, floating point.
        weight: (V, D) output embedding, of hidden's dtype.
        target: (...) class indices, or (..., K) given ids. Ids may repeat within a token.
        bias: (V,), of hidden's dtype.
        softcap: logits become softcap * tanh(logits / softcap), after the scale. None: no cap.
        scale: logits are multiplied by it.
        temperature: a positive number that divides the logits, after the cap.
        entropy: whether to compute the entropy too.
        shift: k pairs position t with target t + k, without copies; 1 is next-token prediction.
        ignore_index: targets of this value are ignored: their result is 0. Tokens without any other target are left
            out: their entropy is 0 too.
        head_dtype: dtype of the matmuls and logits, as for `linear_cross_entropy`. None: hidden's, or autocast's.
        backend: name of a backend (`cynosure info` lists them). None: the best.
        chunk_tokens: rows of logits held at once. None: chosen by size.
        grad_tolerance: relative error, in norm, that sampling may add to the gradients of hidden and weight, as for
            `linear_cross_entropy`. 0: exact. The result stays exact.
        generator: CPU generator of the draws, as for `linear_cross_entropy`. None: torch's default one.

    Returns:
        (...), or (..., T - shift) under shift, with K more columns for given ids; 0.0 where ignored. float32, or
        float64 for float64 inputs. With `entropy`, a `TokenLogprobs` of these and of the entropy, which never has K
        columns.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.
        IndexError: a class index is outside [0, V); the message has its position.

    Example:
        >>> import torch
        >>> logprobs = token_logprobs(torch.zeros(2, 8), torch.randn(10, 8), torch.tensor([3, -100]))
        >>> logprobs.exp()  # p is 1 / 10; the second token is ignored
        tensor([0.1000, 1.0000])
        >>> weight = torch.tensor([[1.0], [0.0], [-1.0]])
        >>> two = token_logprobs(torch.tensor([[2.0]]), weight, torch.tensor([[0, 2]]), temperature=2.0, entropy=True)
        >>> two.logprobs.exp()  # of the logits 1, 0, -1
        tensor([[0.6652, 0.0900]])
        >>> two.entropy
        tensor([0.8324])
    """
    check_class_indices(target)
    one_shift(shift)
    scale, softcap = at_temperature(temperature, scale, softcap)
    if not (entropy or names_ids(hidden, target)):
        return -linear_cross_entropy(
            hidden, weight, target, bias=bias, softcap=softcap, scale=scale, shift=shift, ignore_index=ignore_index,
            reduction="none", head_dtype=head_dtype, backend=backend, chunk_tokens=chunk_tokens,
            grad_tolerance=grad_tolerance, generator=generator,
        )  # fmt: skip
    reduce = ReduceOptions(ignore_index, "none", shift=shift)
    job = job_of(
        hidden, HeadWeights(weight, bias), target, RowOptions(softcap=softcap, scale=scale), reduce, backend,
        chunk_tokens, head_dtype,
    )  # fmt: skip
    job = sampled(job, hidden, weight, grad_tolerance, generator)
    if job.batch.target.is_abstract:
        return _shapes(job, target, entropy, hidden, weight, bias)
    rows, given = hidden.reshape(-1, hidden.shape[-1]), weight if job.own_weight is None else None
    return spread(job, apply_pair(FusedLogprobs, rows, given, bias, job, entropy), target, reduce, entropy)


@overload
def logits_token_logprobs(
    logits: Tensor, target: Tensor, *, softcap: float | None = None, scale: float = 1.0, temperature: float = 1.0,
    entropy: Literal[False] = False, shift: int = 0, ignore_index: int = -100, backend: str | None = None,
) -> Tensor: ...  # fmt: skip


@overload
def logits_token_logprobs(
    logits: Tensor, target: Tensor, *, softcap: float | None = None, scale: float = 1.0, temperature: float = 1.0,
    entropy: Literal[True], shift: int = 0, ignore_index: int = -100, backend: str | None = None,
) -> TokenLogprobs: ...  # fmt: skip


@overload
def logits_token_logprobs(
    logits: Tensor, target: Tensor, *, softcap: float | None = None, scale: float = 1.0, temperature: float = 1.0,
    entropy: bool, shift: int = 0, ignore_index: int = -100, backend: str | None = None,
) -> Tensor | TokenLogprobs: ...  # fmt: skip


@public
def logits_token_logprobs(
    logits: Tensor,
    target: Tensor,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
    temperature: float = 1.0,
    entropy: bool = False,
    shift: int = 0,
    ignore_index: int = -100,
    backend: str | None = None,
) -> Tensor | TokenLogprobs:
    """Compute `token_logprobs` from existing logits, differentiably; classes are the last dimension.

    The logits are not modified. No further memory of the size of the logits and their gradient is allocated.

    Args:
        logits: (..., V), floating point.
        target: (...) class indices, or (..., K) given ids. Ids may repeat within a token.
        softcap: logits become softcap * tanh(logits / softcap), after the scale. None: no cap.
        scale: logits are multiplied by it.
        temperature: a positive number that divides the logits, after the cap.
        entropy: whether to compute the entropy too.
        shift: k pairs position t with target t + k, without copies; 1 is next-token prediction.
        ignore_index: targets of this value are ignored: their result is 0. Tokens without any other target are left
            out: their entropy is 0 too.
        backend: name of a backend (`cynosure info` lists them). None: the best.

    Returns:
        (...), or (..., T - shift) under shift, with K more columns for given ids: log p in nats, 0.0 where ignored.
        float32, or float64 for float64 logits. With `entropy`, a `TokenLogprobs` of these and of the entropy.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.
        IndexError: a class index is outside [0, V); the message has its position.

    Example:
        >>> import torch
        >>> logits_token_logprobs(torch.zeros(2, 10), torch.tensor([3, -100])).exp()  # p = 0.1; the second is ignored
        tensor([0.1000, 1.0000])
        >>> logits_token_logprobs(torch.zeros(1, 2), torch.tensor([[0, 1, 1]]), entropy=True)  # ln 2
        TokenLogprobs(logprobs=tensor([[-0.6931, -0.6931, -0.6931]]), entropy=tensor([0.6931]))
    """
    check_class_indices(target)
    scale, softcap = at_temperature(temperature, scale, softcap)
    if not (entropy or names_ids(logits, target)):
        return -cross_entropy(
            logits, target, softcap=softcap, scale=scale, shift=shift, ignore_index=ignore_index, reduction="none",
            backend=backend,
        )  # fmt: skip
    reduce = ReduceOptions(ignore_index, "none", shift=shift)
    job = job_of(logits, None, target, RowOptions(softcap=softcap, scale=scale), reduce, backend)
    if job.batch.target.is_abstract:
        return _shapes(job, target, entropy, logits)
    return spread(job, apply_pair(LogitsLogprobs, logits, job, entropy), target, reduce, entropy)


def at_temperature(temperature: float, scale: float, softcap: float | None) -> tuple[float, float | None]:
    """Return the scale and the cap of logits that the temperature divides: cap(x) / T is a cap of x / T at softcap / T.

    >>> at_temperature(2.0, 1.0, 30.0)
    (0.5, 15.0)
    """
    if isinstance(temperature, float) and temperature == 1:
        return scale, softcap
    temperature = as_positive("temperature", temperature)
    scale = as_number("scale", scale, "finite") / temperature
    return scale, None if softcap is None else as_positive("softcap", softcap) / temperature


def names_ids(rows: Any, target: Tensor) -> bool:
    """Whether a target has several ids for each row of hidden (..., D) or logits (..., V), not one class index."""
    return isinstance(rows, Tensor) and rows.ndim == target.ndim


def job_of(
    inputs: Tensor, head: HeadWeights | None, target: Tensor, options: RowOptions, reduce: ReduceOptions,
    backend: str | None, chunk_tokens: int | None = None, head_dtype: torch.dtype | None = None,
) -> LossJob:  # fmt: skip
    """Check the arguments for hidden (..., D) and a head, or for logits (..., V); return the job."""
    check_class_indices(target)
    given = GivenIds(target) if names_ids(inputs, target) else target
    if head is None:
        return logits_job(inputs, given, options, reduce, backend)
    return linear_job(head, inputs, given, options, reduce, backend, chunk_tokens, head_dtype)


def spread(
    job: LossJob, results: tuple[Tensor, Tensor], target: Tensor, reduce: ReduceOptions, entropy: bool
) -> Tensor | TokenLogprobs:
    """Return log-probabilities (n, K) and entropies (n,) of the counted rows in the shape of all."""
    batch, (logprobs, entropies) = job.batch, results
    logprobs = batch.spread(logprobs * batch.weight[:, None])  # NaN if an id was found to be outside the vocabulary
    if target.ndim == len(batch.shape):
        logprobs = logprobs[..., 0]
    else:
        ids = target[..., reduce.shift :, :] if reduce.shift else target
        logprobs = logprobs.masked_fill(is_index(ids, reduce.ignore_index).to(logprobs.device), 0)
    return TokenLogprobs(logprobs, batch.spread(entropies * batch.weight)) if entropy else logprobs


def _shapes(job: LossJob, target: Tensor, entropy: bool, *given: Tensor | None) -> Tensor | TokenLogprobs:
    """Return the results of tensors without values: only shapes and a dtype."""
    lead, dtype = job.batch.shape, accumulation_dtype(job.dtype)
    shape = lead if target.ndim == len(lead) else lead + target.shape[-1:]
    logprobs = apply(Shapes, shape, dtype, *given)
    return TokenLogprobs(logprobs, apply(Shapes, lead, dtype, *given)) if entropy else logprobs
