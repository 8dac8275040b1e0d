"""The implementations of log-probabilities and of the divergence: each is one function from inputs to a step.

h (N, D) hidden states, w (V, D) the head, t (N,) class indices. A step is forward and backward: log-probabilities and
entropies get a random upstream gradient each, as a loss that knows it only later would give, the divergence is a mean.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.implementation import LIMIT, OURS, TOLERANCE, Implementation, by_name
from benchmarks.loss.implementations import EAGER, SAMPLED, Inputs

if TYPE_CHECKING:  # the parent process looks names up here and must not pay for torch
    from torch import Tensor

LIMIT_HELD = "limit-held"
ENTROPY_GRADIENT = 0.1  # standard deviation of the entropies' upstream gradients; the log-probabilities' have 1
TEACHER_NOISE = 0.1  # standard deviation of what the teacher's numbers are multiplied by, which is 1 on average


class Outputs(NamedTuple):
    """What a step returns."""

    values: "tuple[Tensor, ...]"  # log-probabilities (N,) and entropies (N,), or the divergence, 0-d
    dhidden: "Tensor"  # (N, D)
    dweight: "Tensor"  # (V, D)


Step = Callable[[], Any]  # of Outputs, or of the limit's


def upstream_of(inputs: Inputs) -> "tuple[Tensor, Tensor]":
    """The upstream gradients (N,) of log-probabilities and entropies: the same in every process."""
    import torch

    generator = torch.Generator().manual_seed(1)
    logprobs, entropy = torch.randn(2, len(inputs.hidden), generator=generator)
    return logprobs, entropy * ENTROPY_GRADIENT


def teacher_of(inputs: Inputs) -> Inputs:
    """A teacher beside the student, its hidden states and head those of the student with noise: likewise."""
    import torch

    generator = torch.Generator().manual_seed(2)

    def noisy(x: "Tensor") -> "Tensor":
        noise = torch.randn(x.shape, generator=generator).mul_(TEACHER_NOISE).add_(1.0)
        return noise.mul_(x.detach()).to(x.dtype)

    return inputs._replace(hidden=noisy(inputs.hidden), weight=noisy(inputs.weight))


def torch_step(
    inputs: Inputs,
    values_of: "Callable[[Tensor, Tensor], tuple[Tensor, ...]]",
    upstream: "tuple[Tensor | None, ...]",
) -> Step:
    """Forward and backward of something written in torch."""
    import torch

    hidden, weight = (x.detach().requires_grad_() for x in (inputs.hidden, inputs.weight))

    def step() -> Outputs:
        values = values_of(hidden, weight)
        torch.autograd.backward(values, upstream)
        assert hidden.grad is not None
        assert weight.grad is not None
        outputs = Outputs(tuple(value.detach() for value in values), hidden.grad, weight.grad)
        hidden.grad = weight.grad = None
        return outputs

    return step


def plain_logprobs(h: "Tensor", w: "Tensor", t: "Tensor") -> "tuple[Tensor, Tensor]":
    import torch.nn.functional as F

    logprobs = F.linear(h, w).float().log_softmax(-1)
    return logprobs.gather(-1, t[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def plain_divergence(h: "Tensor", w: "Tensor", teacher_h: "Tensor", teacher_w: "Tensor") -> "Tensor":
    import torch
    import torch.nn.functional as F

    with torch.no_grad():
        teacher = F.linear(teacher_h, teacher_w).float().log_softmax(-1)
    return F.kl_div(F.linear(h, w).float().log_softmax(-1), teacher, reduction="batchmean", log_target=True)


def build_logprobs(inputs: Inputs, grad_tolerance: float = 0.0) -> Step:
    from cynosure.loss import token_logprobs

    def values_of(h: "Tensor", w: "Tensor") -> "tuple[Tensor, Tensor]":
        return token_logprobs(h, w, inputs.target, entropy=True, grad_tolerance=grad_tolerance)

    return torch_step(inputs, values_of, upstream_of(inputs))


def build_logprobs_sampled(inputs: Inputs) -> Step:
    return build_logprobs(inputs, TOLERANCE)


def build_logprobs_trl(inputs: Inputs) -> Step:
    from trl.kernels import ChunkedLogProbFunction

    # As TRL's trainers call it: bias, targets, temperature, columns at a time, softcap, scale, outputs.
    arguments = None, inputs.target, 1.0, 32768, None, 1.0, ("log_probs", "entropy")
    call: Any = ChunkedLogProbFunction.apply
    return torch_step(inputs, lambda h, w: call(h, w, *arguments)[:2], upstream_of(inputs))


def build_logprobs_eager(inputs: Inputs) -> Step:
    return torch_step(inputs, lambda h, w: plain_logprobs(h, w, inputs.target), upstream_of(inputs))


def build_logprobs_compile(inputs: Inputs) -> Step:
    import torch

    compiled = torch.compile(plain_logprobs, dynamic=False)
    step = torch_step(inputs, lambda h, w: compiled(h, w, inputs.target), upstream_of(inputs))
    step()  # compiles, for this very shape
    return step


def build_divergence(inputs: Inputs) -> Step:
    from cynosure.loss import linear_kl_div

    teacher = teacher_of(inputs)
    return torch_step(inputs, lambda h, w: (linear_kl_div(h, w, teacher.hidden, teacher.weight),), (None,))


def build_divergence_float(inputs: Inputs) -> Step:
    import torch

    from cynosure.loss import linear_kl_div

    teacher, wide = teacher_of(inputs), torch.float32
    return torch_step(
        inputs, lambda h, w: (linear_kl_div(h, w, teacher.hidden, teacher.weight, head_dtype=wide),), (None,)
    )


def build_divergence_trl(inputs: Inputs) -> Step:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    teacher = teacher_of(inputs)
    call: Any = ChunkedDivergenceFunction.apply
    # As TRL's DistillationTrainer calls it: biases, beta, which is 0 for the forward divergence, and temperature.
    arguments = teacher.hidden, teacher.weight, None, 0.0, 1.0
    return torch_step(inputs, lambda h, w: (call(h, w, None, *arguments)[0].sum() / len(h),), (None,))


def build_divergence_eager(inputs: Inputs) -> Step:
    teacher = teacher_of(inputs)
    return torch_step(inputs, lambda h, w: (plain_divergence(h, w, teacher.hidden, teacher.weight),), (None,))


def build_divergence_compile(inputs: Inputs) -> Step:
    import torch

    teacher, compiled = teacher_of(inputs), torch.compile(plain_divergence, dynamic=False)
    step = torch_step(inputs, lambda h, w: (compiled(h, w, teacher.hidden, teacher.weight),), (None,))
    step()  # compiles, for this very shape
    return step


def build_logprobs_limit(inputs: Inputs) -> Step:
    return limit_step(inputs, inputs)


def build_logprobs_limit_chunked(inputs: Inputs) -> Step:
    return limit_step(inputs, inputs, chunked=True)


def build_divergence_limit(inputs: Inputs) -> Step:
    return limit_step(inputs, teacher_of(inputs))


def build_divergence_limit_chunked(inputs: Inputs) -> Step:
    return limit_step(inputs, teacher_of(inputs), chunked=True)


def limit_step(inputs: Inputs, before: Inputs, chunked: bool = False) -> Step:
    """The matmul of the logits of `before`, then those of logits and both gradients of the inputs."""
    from benchmarks.loss.limit import best_provider, chunked_gemms, whole_gemms

    provider, gemms = best_provider(inputs), chunked_gemms if chunked else whole_gemms
    first = before._replace(backward=False)

    def step() -> Any:
        gemms(first, provider)
        return gemms(inputs, provider)

    return step


def build_limit_held(inputs: Inputs) -> Step:
    from benchmarks.loss.limit import best_provider, whole_gemms

    provider = best_provider(inputs)
    return lambda: whole_gemms(inputs, provider)


CHUNKED = "the same in the chunks of our loss"

LOGPROBS = by_name(
    Implementation(OURS, "cynosure.token_logprobs(h, W, t, entropy=True)", build_logprobs),
    Implementation(
        SAMPLED, "the same with grad_tolerance=2**-8", build_logprobs_sampled, places=("cpu",), grad_tolerance=TOLERANCE
    ),
    Implementation("trl", "trl.kernels.ChunkedLogProbFunction, with entropy", build_logprobs_trl),
    Implementation(EAGER, "F.linear(h, W).float().log_softmax(-1), gather and entropy", build_logprobs_eager),
    Implementation("compile", "torch.compile of that", build_logprobs_compile),
    Implementation(LIMIT, "four matmuls: logits, logits again, both gradients", build_logprobs_limit, checked=False),
    Implementation("limit-chunked", CHUNKED, build_logprobs_limit_chunked, checked=False),
    Implementation(LIMIT_HELD, "three matmuls: the logits are held for the backward", build_limit_held, checked=False),
)
DIVERGENCE = by_name(
    Implementation(OURS, "cynosure.linear_kl_div(h, W, teacher_h, teacher_W)", build_divergence),
    Implementation(
        "float32",
        "cynosure.linear_kl_div(..., head_dtype=torch.float32), as TRL multiplies",
        build_divergence_float,
        ("bfloat16",),
    ),
    Implementation(
        "trl", "trl.kernels.chunked_divergence.ChunkedDivergenceFunction, matmuls in float32", build_divergence_trl
    ),
    Implementation(EAGER, "F.kl_div of two F.linear(h, W).float().log_softmax(-1)", build_divergence_eager),
    Implementation("compile", "torch.compile of that", build_divergence_compile),
    Implementation(LIMIT, "four matmuls: both logits, both gradients", build_divergence_limit, checked=False),
    Implementation("limit-chunked", CHUNKED, build_divergence_limit_chunked, checked=False),
)
