"""The truth in float64, and how far an implementation is from it.

dhidden (N, D) and dweight (V, D) are compared through K random projections, so that the truth fits in kilobytes and is
kept: E|r G|^2 = |G|^2 for r ~ N(0, 1), so |r (G - G64)| / |r G64| estimates the relative Frobenius error, in which
every element of the gradient takes part.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from benchmarks.loss.implementations import Inputs, Outputs

CPU = torch.device("cpu")
N_PROBES = 8
BLOCK_BYTES = 256 * 2**20
Block = Callable[[slice, Tensor], tuple[Tensor, Tensor]]  # rows, logits (n, V) to values (n, ...) and d(logits)
LOSS_EPS = 1.0  # units of rounding of the dtype that a loss, a single number, may be off beyond twice the eager op


class Errors(NamedTuple):
    """Relative errors against float64."""

    loss: float
    dhidden: float
    dweight: float


class Projections(Protocol):
    """The projections of both gradients, in float64."""

    @property
    def dhidden(self) -> Tensor:
        """(N, K)."""

    @property
    def dweight(self) -> Tensor:
        """(K, D)."""


class LossTruth(NamedTuple):
    """The loss, and the projections of both gradients, in float64."""

    loss: Tensor  # 0-d
    dhidden: Tensor  # (N, K)
    dweight: Tensor  # (K, D)


def probes(hidden_size: int, vocab_size: int, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    """The projections' vectors (D, K) and (V, K): the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(hidden_size, N_PROBES, dtype=torch.float64, generator=generator).to(device),
        torch.randn(vocab_size, N_PROBES, dtype=torch.float64, generator=generator).to(device),
    )


def compute_truth(inputs: Inputs) -> LossTruth:
    """d(logits) = (p - onehot) / N."""
    n_tokens = len(inputs.hidden)

    def block(rows: slice, z: Tensor) -> tuple[Tensor, Tensor]:
        target = inputs.target[rows, None]
        lse = z.logsumexp(1, keepdim=True)
        nll = lse - z.gather(1, target)
        return nll, z.sub_(lse).exp_().scatter_add_(1, target, z.new_full(target.shape, -1.0)).div_(n_tokens)

    nll, dhidden, dweight = projected(inputs, block)
    return LossTruth(nll.mean(), dhidden, dweight)


def projected(inputs: Inputs, block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """A block of rows at a time: the values, and d(logits) times the probes. No gradient is made in full."""
    (n_tokens, hidden_size), vocab_size = inputs.hidden.shape, len(inputs.weight)
    by_hidden, by_vocab = probes(hidden_size, vocab_size, inputs.hidden.device)
    weight, hidden = inputs.weight.detach().double(), inputs.hidden.detach().double()
    seen_by = torch.cat([weight @ by_hidden, by_vocab], 1)  # (V, 2K)
    n_block = max(1, BLOCK_BYTES // (8 * vocab_size))
    values, dhidden, dweight = [], [], weight.new_zeros(N_PROBES, hidden_size)
    for start in range(0, n_tokens, n_block):
        rows = slice(start, start + n_block)
        found, dlogits = block(rows, hidden[rows] @ weight.t())
        values.append(found)
        by_probe = dlogits @ seen_by
        dhidden.append(by_probe[:, :N_PROBES])
        dweight += by_probe[:, N_PROBES:].t() @ hidden[rows]
    return torch.cat(values), torch.cat(dhidden), dweight


def errors_of(outputs: Outputs, truth: LossTruth) -> dict[str, float]:
    """How far outputs are from the truth, by the names of `Errors`: the loss, and gradients if made."""
    made = [x if isinstance(x, Tensor) else from_dlpack(x) for x in outputs if x is not None]
    errors = {"loss": relative(made[0].double(), truth.loss)}
    return errors | (gradient_errors(made[1], made[2], truth) if len(made) > 1 else {})


def gradient_errors(dhidden: Tensor, dweight: Tensor, truth: Projections) -> dict[str, float]:
    by_hidden, by_vocab = probes(dhidden.shape[1], len(dweight), dweight.device)
    projected = torch.zeros_like(truth.dweight)
    n_block = max(1, BLOCK_BYTES // (8 * dweight.shape[1]))
    for start in range(0, len(dweight), n_block):
        projected += by_vocab[start : start + n_block].t() @ dweight[start : start + n_block].double()
    return {
        "dhidden": relative(dhidden.double() @ by_hidden, truth.dhidden),
        "dweight": relative(projected, truth.dweight),
    }


def relative(x: Tensor, truth: Tensor) -> float:
    return float((x - truth).norm() / truth.norm())


def allowed(yardstick: Errors, dtype: torch.dtype) -> Errors:
    """Twice the error of the eager op in the same dtype; for the loss, which it may hit by luck, one rounding more."""
    slack = Errors(LOSS_EPS * torch.finfo(dtype).eps, 0.0, 0.0)
    return Errors(*(2 * error + eps for error, eps in zip(yardstick, slack, strict=True)))
