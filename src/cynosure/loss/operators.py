"""The loss and the statistics as operators of torch, for graphs: torch.compile, torch.export and make_fx.

Eager calls take the shorter way through `autograd.py`. An operator has the same checks and the same computation. Its
implementation for fake tensors runs the checks that need no values, while the graph is captured.
"""

from inspect import unwrap
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from cynosure.loss.chunked import Gradients, LossJob, Wanted, compute, compute_dlogits, compute_dtarget, compute_logits
from cynosure.loss.devices import is_asynchronous
from cynosure.loss.forward import compute_loss
from cynosure.loss.jobs import linear_job, logits_job
from cynosure.loss.linear import HeadWeights
from cynosure.loss.operator_parts import (
    EarlyGradients,
    ModelTensors,
    as_called,
    dtoken_weights,
    dtypes_of,
    fakes,
    gemm_flops,
    leaf,
    reduced,
    refuse_second,
    shaped,
    weighed_upstream,
)
from cynosure.loss.options import ReduceOptions, Reduction, RowOptions, accumulation_dtype
from cynosure.loss.sampling.options import Sampling, check_device, check_tolerance
from cynosure.loss.stats import TokenStats, logits_token_stats, token_stats
from cynosure.loss.targets import TargetLike
from cynosure.loss.tensors import is_abstract, plain

LOSS = (
    "Tensor inputs, Tensor? weight, Tensor? bias, Tensor? probability, Tensor? token_weight, Tensor? classes, "
    "Tensor? class_weight, Tensor? normalizer, Tensor? seed, int ignore_index, str reduction, float label_smoothing, "
    "float z_loss, float? softcap, float scale, int[] shift, float[]? shift_weight, SymInt? n_counted, str? backend, "
    "int? chunk_tokens, ScalarType? head_dtype, float grad_tolerance, ScalarType? autocast, bool[] wanted"
)
STATS = (
    "Tensor inputs, Tensor? weight, Tensor? bias, Tensor target, float? softcap, float scale, int shift, "
    "int ignore_index, int topk, float[] temperatures, str? backend, int? chunk_tokens, "
    "ScalarType? head_dtype, ScalarType? autocast"
)
GRADIENTS = "Tensor dinputs, Tensor dweight, Tensor dbias, Tensor dprobability, Tensor dtoken_weight"
N_GRADIENTS = 5  # of the first tensors of `Given`
N_TENSORS = 9


class Given(NamedTuple):
    """The arguments of `cynosure::cross_entropy`, in the order of its schema."""

    inputs: Tensor  # hidden (..., D); without a weight, logits (..., V)
    weight: Tensor | None
    bias: Tensor | None
    probability: Tensor | None  # of a target that has them
    token_weight: Tensor | None
    classes: Tensor | None  # of a target that has them
    class_weight: Tensor | None
    normalizer: Tensor | None
    seed: Tensor | None  # of the sampled backward, int64 on the CPU; None for the exact one
    ignore_index: int
    reduction: Reduction
    label_smoothing: float
    z_loss: float
    softcap: float | None
    scale: float
    shift: list[int]
    shift_weight: list[float] | None  # None: there is one shift
    n_counted: int | None
    backend: str | None
    chunk_tokens: int | None
    head_dtype: torch.dtype | None
    grad_tolerance: float
    autocast: torch.dtype | None  # autocast's dtype where the operator was called: a graph may run outside of it
    wanted: list[bool]  # the gradients that the forward computes, of the first five tensors

    @classmethod
    def of(cls, arguments: tuple[Any, ...]) -> "Given":
        """The arguments as plain tensors; a token weight whose gradient is wanted is a leaf of its own."""
        given = cls(*map(plain, cls._fields, arguments))
        return given._replace(token_weight=leaf(given.token_weight, given.wanted[4]))

    @property
    def is_early(self) -> bool:
        """Whether the forward computes gradients: of one number, from the logits that it has anyway."""
        return self.weight is not None and self.reduction != "none" and any(self.wanted)

    def job(self) -> LossJob:
        """Check the arguments; return the job."""
        target = cast(TargetLike, self.classes if self.probability is None else self.probability)
        if self.classes is not None and self.probability is not None:
            target = self.classes, self.probability
        n_counted = self.n_counted if isinstance(self.n_counted, int) else None  # symbolic while captured
        options = RowOptions(self.label_smoothing, self.z_loss, self.softcap, self.scale, self.class_weight)
        weights = None if self.shift_weight is None else tuple(self.shift_weight)
        shift = self.shift[0] if weights is None else tuple(self.shift)
        reduce = ReduceOptions(
            self.ignore_index, self.reduction, self.token_weight, self.normalizer, shift, n_counted, weights
        )  # fmt: skip
        if self.weight is None:
            return logits_job(self.inputs, target, options, reduce, self.backend)
        head = HeadWeights(self.weight, self.bias)
        job = linear_job(head, self.inputs, target, options, reduce, self.backend, self.chunk_tokens, self.head_dtype)
        return job._replace(sampling=sampling_of(self.grad_tolerance, self.seed, self.inputs.device, job.dtype))

    @property
    def leaves(self) -> tuple[Tensor | None, ...]:
        """The tensors that have gradients."""
        return self.inputs, self.weight, self.bias, self.probability, self.token_weight

    @property
    def model(self) -> ModelTensors:
        """The tensors of the model."""
        return ModelTensors(self.inputs, self.weight, self.bias)

    def gradients(self, job: LossJob, upstream: Tensor, wanted: list[bool]) -> tuple[Tensor, Gradients]:
        """The loss (n,) of every counted row, and the gradients of sum(upstream * loss) under a head."""
        return compute(job, self.model.rows, self.model.head(job), upstream, Wanted(*wanted[:4]))

    def losses(self, job: LossJob) -> Tensor:
        """The loss (n,) of every counted row."""
        if self.weight is None:
            return compute_logits(job, self.inputs)
        return compute_loss(job, self.model.rows, self.model.head(job))


def sampling_of(
    grad_tolerance: float, seed: Tensor | None, device: torch.device, dtype: torch.dtype
) -> Sampling | None:
    """Check the tolerance; return how the backward samples, None if it is exact or the seed has no value."""
    tolerance = check_tolerance(grad_tolerance, dtype)
    check_device(tolerance, device)
    return None if tolerance == 0 or seed is None or is_abstract(seed) else Sampling(tolerance, int(seed))


def forward(*arguments: Any) -> tuple[Tensor, ...]:
    """Compute the loss; for one number of hidden states also its gradients, relative to `unit`."""
    given = Given.of(arguments)
    with as_called(given.inputs, given.autocast):
        job = given.job()
        weight = job.batch.weight.detach()
        if not given.is_early:
            result = reduced(job.batch, given.losses(job) * weight, given.reduction)
            nothing = given.inputs.new_empty(0, dtype=result.dtype)
            return result.contiguous(), nothing, *shaped((None,) * N_GRADIENTS, given.leaves)
        losses, found = given.gradients(job, weight, given.wanted)
        dtoken_weight = dtoken_weights(given.token_weight, job.batch, losses / found.unit)
    unit = torch.full_like(losses[:1].sum(), found.unit) if isinstance(found.unit, float) else found.unit
    gradients = found.dhidden, found.dweight, found.dbias, found.dtarget, dtoken_weight
    return (losses * weight).sum(), unit, *shaped(gradients, given.leaves)


def backward(upstream: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Compute the wanted gradients for any upstream gradient from the inputs."""
    given, upstream = Given.of(arguments), plain("the upstream gradient", upstream)
    wanted = given.wanted
    with as_called(given.inputs, given.autocast):
        job = given.job()
        dweighed = weighed_upstream(job.batch, given.reduction, upstream)
        drows = dweighed * job.batch.weight.detach()
        if given.weight is None:
            losses = given.losses(job) if wanted[4] else drows
            dlogits = compute_dlogits(job, given.inputs, drows) if wanted[0] else None
            dtarget = compute_dtarget(job, given.inputs, drows) if wanted[3] else None
            gradients: list[Tensor | None] = [dlogits, None, None, dtarget]
        else:
            losses, found = given.gradients(job, drows, wanted)
            gradients = found.take(None, dtypes_of(given.leaves[:4]))
        dtoken_weight = dtoken_weights(given.token_weight, job.batch, dweighed * losses)
        return shaped((*gradients, dtoken_weight), given.leaves)


def fake_forward(*arguments: Any) -> tuple[Tensor, ...]:
    """The shapes of `forward`."""
    given = Given.of(arguments)
    with as_called(given.inputs, given.autocast):
        job = given.job()
    exact, wanted = accumulation_dtype(job.dtype), given.wanted if given.is_early else [False] * N_GRADIENTS
    shape = job.batch.shape if given.reduction == "none" else ()
    dtypes = [job.dtype, job.dweight_dtype, exact, *dtypes_of(given.leaves[3:])]
    new = given.inputs.new_empty
    unit = new(() if given.is_early else (0,), dtype=exact)
    return new(shape, dtype=exact), unit, *fakes(given.leaves, dtypes, wanted)


def fake_backward(upstream: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """The shapes of `backward`."""
    given = Given(*arguments)
    return fakes(given.leaves, dtypes_of(given.leaves), given.wanted)


def statistics(
    inputs: Tensor, weight: Tensor | None, bias: Tensor | None, target: Tensor, *numbers: Any
) -> tuple[Tensor, ...]:
    """Compute the statistics of hidden states, or without a weight of logits; their shapes for fake tensors."""
    names = "softcap", "scale", "shift", "ignore_index", "topk", "temperatures", "backend"
    *options, chunk_tokens, head_dtype, autocast = numbers
    given = dict(zip(names, options, strict=True))
    inputs, target = plain("hidden or logits", inputs), plain("target", target)
    with as_called(inputs, autocast):
        if weight is None:
            stats: TokenStats = unwrap(logits_token_stats)(inputs, target, **given)
        else:
            given |= {"bias": plain("bias", bias), "chunk_tokens": chunk_tokens, "head_dtype": head_dtype}
            stats = unwrap(token_stats)(inputs, plain("weight", weight), target, **given)
    return tuple(x.contiguous() for x in stats)


OUTPUT = f"(Tensor loss, Tensor unit, {GRADIENTS})"
LOSS_OPERATOR = custom_op("cynosure::cross_entropy", forward, mutates_args=(), schema=f"({LOSS}) -> {OUTPUT}")
LOSS_OPERATOR.register_fake(fake_forward)

BACKWARD_OPERATOR = custom_op(
    "cynosure::cross_entropy_backward", backward, mutates_args=(), schema=f"(Tensor upstream, {LOSS}) -> ({GRADIENTS})"
)
BACKWARD_OPERATOR.register_fake(fake_backward)
BACKWARD_OPERATOR.register_autograd(refuse_second)

EARLY = EarlyGradients(torch.ops.cynosure.cross_entropy_backward, len(Given._fields), N_TENSORS, N_GRADIENTS)
LOSS_OPERATOR.register_autograd(EARLY.differentiate, setup_context=EARLY.save)

STATS_OPERATOR = custom_op(
    "cynosure::token_stats", statistics, mutates_args=(),
    schema=f"({STATS}) -> ({', '.join(f'Tensor {name}' for name in TokenStats._fields)})",
)  # fmt: skip
STATS_OPERATOR.register_fake(statistics)


@register_flop_formula(torch.ops.cynosure.cross_entropy, get_raw=True)
def forward_flops(*arguments: Any, **_: Any) -> int:
    """What `FlopCounterMode` counts for the loss: the GEMMs of its counted rows, those of the exact backward.

    A sampled backward does less: how much depends on values.
    """
    given = Given.of(arguments)
    return gemm_flops(given, (given.weight, 1 + sum(given.wanted[:2]) if given.is_early else 1))


@register_flop_formula(torch.ops.cynosure.cross_entropy_backward, get_raw=True)
def backward_flops(upstream: Tensor, *arguments: Any, **_: Any) -> int:
    """What `FlopCounterMode` counts for the exact backward, which computes the logits again."""
    given = Given.of(arguments)
    return gemm_flops(given, (given.weight, 1 + sum(given.wanted[:2])))


@register_flop_formula(torch.ops.cynosure.token_stats, get_raw=True)
def stats_flops(
    inputs: Tensor, weight: Tensor | None, bias: Tensor | None, target: Tensor, softcap: float | None, scale: float,
    shift: int, ignore_index: int, *_: Any, **__: Any,
) -> int:  # fmt: skip
    """What `FlopCounterMode` counts for the statistics."""
    return 0 if weight is None else 2 * n_counted(target, shift, ignore_index) * weight.numel()


def n_counted(target: Tensor, shift: int, ignore_index: int) -> int:
    """How many targets count; on a device or fake, where their values are not read, all."""
    rows = target[..., shift:]
    is_read = not is_asynchronous(target.device) and not is_abstract(target)
    return int((rows != ignore_index).sum()) if is_read else rows.numel()
