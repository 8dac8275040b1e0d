"""The truth about log-probabilities and the divergence in float64, and how far an implementation is from it.

Gradients are compared through random projections, as those of the loss are.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.implementation import Implementation
from benchmarks.loss.implementations import Inputs
from benchmarks.loss.inputs import load_inputs, save
from benchmarks.loss.prepared import Prepared
from benchmarks.loss.reference import gradient_errors, projected, relative
from benchmarks.primitives.implementations import Outputs, teacher_of, upstream_of


class Truth(NamedTuple):
    """The values, and the projections of both gradients, in float64."""

    values: tuple[Tensor, ...]
    dhidden: Tensor  # (N, K)
    dweight: Tensor  # (K, D)


def logprobs_truth(inputs: Inputs) -> Truth:
    """d(logits) = g (onehot - p) - e p (log p + H), of upstream gradients g and e."""
    upstream, entropy_upstream = (x.double()[:, None] for x in upstream_of(inputs))

    def block(rows: slice, z: Tensor) -> tuple[Tensor, Tensor]:
        target, g, e = inputs.target[rows, None], upstream[rows], entropy_upstream[rows]
        z = z.log_softmax(1)
        p = z.exp()
        entropy, logprobs = -(p * z).sum(1, keepdim=True), z.gather(1, target)
        dlogits = z.add_(entropy).mul_(-e).sub_(g).mul_(p).scatter_add_(1, target, g)
        return torch.cat([logprobs, entropy], 1), dlogits

    values, dhidden, dweight = projected(inputs, block)
    return Truth(values.unbind(1), dhidden, dweight)


def divergence_truth(inputs: Inputs) -> Truth:
    """d(logits) = (s - t) / N, of the student's and the teacher's probabilities."""
    teacher, n_tokens = teacher_of(inputs), len(inputs.hidden)
    hidden, by_class = teacher.hidden.double(), teacher.weight.double().t()

    def block(rows: slice, z: Tensor) -> tuple[Tensor, Tensor]:
        z, of_teacher = z.log_softmax(1), (hidden[rows] @ by_class).log_softmax(1)
        t = of_teacher.exp()
        values = of_teacher.sub_(z).mul_(t).sum(1)
        return values, z.exp_().sub_(t).div_(n_tokens)

    values, dhidden, dweight = projected(inputs, block)
    return Truth((values.mean(),), dhidden, dweight)


TRUTHS = {"logprobs": logprobs_truth, "kl": divergence_truth}


def keep_truth(made: Prepared, kind: str, plain: Implementation, dtype: str, n_tokens: int) -> None:
    """Compute and keep the truth, and plain torch's distances from it: those of each value, dhidden and dweight."""
    inputs = load_inputs(made, dtype, n_tokens)
    truth = TRUTHS[kind](inputs)
    distances = distances_of(plain.build(inputs)(), truth)
    save(made.truth_file(dtype, n_tokens, kind), {"truth": truth._asdict(), "eager": distances})


def load_truth(made: Prepared, kind: str, dtype: str, n_tokens: int) -> tuple[Truth, list[float]]:
    kept = torch.load(made.truth_file(dtype, n_tokens, kind))
    return Truth(**kept["truth"]), kept["eager"]


def distances_of(outputs: Outputs, truth: Truth) -> list[float]:
    """Relative distances of each value, dhidden and dweight, in the norm."""
    of_values = [relative(x.double(), right) for x, right in zip(outputs.values, truth.values, strict=True)]
    return [*of_values, *gradient_errors(outputs.dhidden, outputs.dweight, truth).values()]
