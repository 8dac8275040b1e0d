"""Log-probabilities of given ids, and the entropy, as operators of torch, for graphs. `operators.py` says how."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from cynosure.loss.autograd import first_order
from cynosure.loss.chunked import LossJob, Wanted, compute, compute_dlogits, logprobs_job
from cynosure.loss.forward import compute_logprobs, logits_logprobs
from cynosure.loss.linear import HeadWeights
from cynosure.loss.logprobs import at_temperature, job_of, names_ids, spread
from cynosure.loss.operator_parts import ModelTensors, as_called, dtypes_of, fakes, gemm_flops, refuse_second, shaped
from cynosure.loss.operators import sampling_of
from cynosure.loss.options import ReduceOptions, RowOptions, accumulation_dtype
from cynosure.loss.tensors import plain

LOGPROBS = (
    "Tensor inputs, Tensor? weight, Tensor? bias, Tensor target, Tensor? seed, float? softcap, float scale, "
    "float temperature, bool entropy, int shift, int ignore_index, str? backend, int? chunk_tokens, "
    "ScalarType? head_dtype, float grad_tolerance, ScalarType? autocast"
)
N_TENSORS, N_GRADIENTS = 5, 3


class LogprobArguments(NamedTuple):
    """The arguments of `cynosure::token_logprobs`, in the order of its schema."""

    inputs: Tensor  # hidden (..., D); without a weight, logits (..., V)
    weight: Tensor | None
    bias: Tensor | None
    target: Tensor
    seed: Tensor | None  # of the sampled backward, int64 on the CPU; None for the exact one
    softcap: float | None
    scale: float
    temperature: float
    entropy: bool
    shift: int
    ignore_index: int
    backend: str | None
    chunk_tokens: int | None
    head_dtype: torch.dtype | None
    grad_tolerance: float
    autocast: torch.dtype | None  # autocast's dtype where the operator was called

    @classmethod
    def of(cls, arguments: tuple[Any, ...]) -> "LogprobArguments":
        """The arguments as plain tensors."""
        return cls(*map(plain, cls._fields, arguments))

    def job(self) -> LossJob:
        """Check the arguments; return the job."""
        scale, softcap = at_temperature(self.temperature, self.scale, self.softcap)
        head = None if self.weight is None else HeadWeights(self.weight, self.bias)
        job = job_of(
            self.inputs, head, self.target, RowOptions(softcap=softcap, scale=scale), self.reduce, self.backend,
            self.chunk_tokens, self.head_dtype,
        )  # fmt: skip
        return job._replace(sampling=sampling_of(self.grad_tolerance, self.seed, self.inputs.device, job.dtype))

    @property
    def model(self) -> ModelTensors:
        """The tensors that have gradients."""
        return ModelTensors(self.inputs, self.weight, self.bias)

    @property
    def reduce(self) -> ReduceOptions:
        """The options that select rows."""
        return ReduceOptions(self.ignore_index, "none", shift=self.shift)

    def spread(self, job: LossJob, logprobs: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
        """The results of the counted rows in the shape of all; without the entropy the second is empty."""
        results = spread(job, (logprobs, entropy), self.target, self.reduce, self.entropy)
        return results if isinstance(results, tuple) else (results, entropy)


def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Compute the log-probabilities, and the entropy if it is wanted."""
    given = LogprobArguments.of(arguments)
    with as_called(given.inputs, given.autocast), torch.no_grad():
        job = given.job()
        if given.weight is None:
            found = logits_logprobs(job, given.inputs, given.entropy)
        else:
            found = compute_logprobs(job, given.model.rows, given.model.head(job), given.entropy)
        logprobs, entropy = given.spread(job, *found)
    return logprobs.contiguous(), entropy.contiguous()


def backward(dlogprobs: Tensor | None, dentropy: Tensor | None, wanted: list[bool], *arguments: Any) -> Any:
    """Compute the wanted gradients for any upstream gradients from the inputs; those that are not wanted are empty."""
    given = LogprobArguments.of(arguments)
    with as_called(given.inputs, given.autocast):
        job = given.job()
        new = job.batch.k.new_zeros
        n_ids = given.target.shape[-1] if names_ids(given.inputs, given.target) else 1
        rows = new(job.batch.n_rows, n_ids).requires_grad_(), new(job.batch.n_rows).requires_grad_()
        upstream: list[Tensor | None] = [None, None]
        for i, (result, received) in enumerate(zip(given.spread(job, *rows), (dlogprobs, dentropy), strict=True)):
            if received is not None:
                (upstream[i],) = torch.autograd.grad(result, rows[i], plain("the upstream gradient", received))
        loss, drows = logprobs_job(job, *upstream)
        if given.weight is None:
            found: list[Tensor | None] = [compute_dlogits(loss, given.inputs, drows), None, None]
        else:
            dhidden, dweight, dbias = wanted
            asked = Wanted(dhidden, dweight, dbias, dtarget=False)
            gradients = compute(loss, given.model.rows, given.model.head(job), drows, asked)[1]
            found = gradients.take(None, [*dtypes_of(given.model), None])[:3]
    return shaped(found, given.model)


def fake_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The shapes of `forward`."""
    given = LogprobArguments.of(arguments)
    with as_called(given.inputs, given.autocast):
        job = given.job()
    lead, dtype = job.batch.shape, accumulation_dtype(job.dtype)
    shape = (*lead, given.target.shape[-1]) if names_ids(given.inputs, given.target) else lead
    new = given.inputs.new_empty
    return new(shape, dtype=dtype), new(lead if given.entropy else 0, dtype=dtype)


def fake_backward(dlogprobs: Tensor | None, dentropy: Tensor | None, wanted: list[bool], *arguments: Any) -> Any:
    """The shapes of `backward`."""
    leaves = arguments[:N_GRADIENTS]
    return fakes(leaves, dtypes_of(leaves), wanted)


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep the inputs."""
    ctx.set_materialize_grads(False)
    ctx.constants = inputs[N_TENSORS:]
    ctx.save_for_backward(*inputs[:N_TENSORS])
    if not LogprobArguments(*inputs).entropy:
        ctx.mark_non_differentiable(output[1])


def differentiate(ctx: Any, dlogprobs: Tensor | None, dentropy: Tensor | None) -> tuple[Any, ...]:
    """The gradients of the arguments."""
    wanted, nothing = list(ctx.needs_input_grad[:N_GRADIENTS]), [None] * (len(LogprobArguments._fields) - N_GRADIENTS)
    if dlogprobs is None and dentropy is None:
        return (*[None] * N_GRADIENTS, *nothing)
    gradients = torch.ops.cynosure.token_logprobs_backward(
        dlogprobs, dentropy, wanted, *ctx.saved_tensors, *ctx.constants
    )
    found = [d if w else None for d, w in zip(gradients, wanted, strict=True)]
    return (*first_order(found, ctx, dlogprobs, dentropy), *nothing)


OPERATOR = custom_op(
    "cynosure::token_logprobs", forward, mutates_args=(), schema=f"({LOGPROBS}) -> (Tensor logprobs, Tensor entropy)"
)
OPERATOR.register_fake(fake_forward)
OPERATOR.register_autograd(differentiate, setup_context=save)

BACKWARD_OPERATOR = custom_op(
    "cynosure::token_logprobs_backward", backward, mutates_args=(),
    schema=f"(Tensor? dlogprobs, Tensor? dentropy, bool[] wanted, {LOGPROBS}) -> "
    "(Tensor dinputs, Tensor dweight, Tensor dbias)",
)  # fmt: skip
BACKWARD_OPERATOR.register_fake(fake_backward)
BACKWARD_OPERATOR.register_autograd(refuse_second)


@register_flop_formula(torch.ops.cynosure.token_logprobs, get_raw=True)
def forward_flops(*arguments: Any, **_: Any) -> int:
    """What `FlopCounterMode` counts: the GEMM of the counted rows."""
    given = LogprobArguments.of(arguments)
    return gemm_flops(given, (given.weight, 1))


@register_flop_formula(torch.ops.cynosure.token_logprobs_backward, get_raw=True)
def backward_flops(
    dlogprobs: Tensor | None, dentropy: Tensor | None, wanted: list[bool], *arguments: Any, **_: Any
) -> int:
    """What `FlopCounterMode` counts for the exact backward, which computes the logits again."""
    given = LogprobArguments.of(arguments)
    return gemm_flops(given, (given.weight, 1 + sum(wanted[:2])))
