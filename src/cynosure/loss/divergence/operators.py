"""The divergence as operators of torch, for graphs. The loss's `operators.py` says how."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from cynosure.loss.chunked import Gradients
from cynosure.loss.divergence.autograd import N_INPUTS, taken_of, wanted_of
from cynosure.loss.divergence.chunks import DivergenceJob, HeadInputs, compute
from cynosure.loss.divergence.jobs import ModelHead, checked_heads, divergence_job
from cynosure.loss.divergence.options import Direction, divergence_options
from cynosure.loss.divergence.topk import TopkArguments
from cynosure.loss.operator_parts import (
    EarlyGradients,
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
from cynosure.loss.options import ReduceOptions, Reduction, accumulation_dtype
from cynosure.loss.tensors import plain

KL_DIV = (
    "Tensor student_hidden, Tensor student_weight, Tensor? student_bias, Tensor teacher_hidden, Tensor teacher_weight, "
    "Tensor? teacher_bias, Tensor? token_weight, Tensor? normalizer, str direction, float? beta, float temperature, "
    "float? student_softcap, float? teacher_softcap, float student_scale, float teacher_scale, str reduction, "
    "int shift, SymInt? vocab_size, ScalarType? head_dtype, int? chunk_tokens, ScalarType? autocast, bool[] wanted"
)
TOPK_IDS = (
    "Tensor student_hidden, Tensor student_weight, Tensor? student_bias, Tensor ids, Tensor logprobs, "
    "Tensor? token_weight, Tensor? normalizer, str direction, str tail, float temperature, float? student_softcap, "
    "float student_scale, str reduction, int shift, ScalarType? head_dtype, int? chunk_tokens, "
    "ScalarType? autocast, bool is_learned"
)
GRADIENTS = ", ".join(f"Tensor d{x.split()[1]}" for x in KL_DIV.split(", ")[: N_INPUTS + 1])
N_TENSORS, N_GRADIENTS = N_INPUTS + 2, N_INPUTS + 1


class DivergenceArguments(NamedTuple):
    """The arguments of `cynosure::kl_div`, in the order of its schema."""

    student_hidden: Tensor  # (..., D)
    student_weight: Tensor  # (V, D): of the first `vocab_size` classes
    student_bias: Tensor | None
    teacher_hidden: Tensor  # (..., E)
    teacher_weight: Tensor  # (V, E), likewise
    teacher_bias: Tensor | None
    token_weight: Tensor | None
    normalizer: Tensor | None
    direction: Direction
    beta: float | None
    temperature: float
    student_softcap: float | None
    teacher_softcap: float | None
    student_scale: float
    teacher_scale: float
    reduction: Reduction
    shift: int
    vocab_size: int | None
    head_dtype: torch.dtype | None
    chunk_tokens: int | None
    autocast: torch.dtype | None  # autocast's dtype where the operator was called
    wanted: list[bool]  # the gradients that the forward computes, of the first seven tensors

    @classmethod
    def of(cls, arguments: tuple[Any, ...]) -> "DivergenceArguments":
        """The arguments as plain tensors; a token weight whose gradient is wanted is a leaf of its own."""
        given = cls(*map(plain, cls._fields, arguments))
        return given._replace(token_weight=leaf(given.token_weight, given.wanted[N_INPUTS]))

    @property
    def is_early(self) -> bool:
        """Whether the forward computes gradients: of one number, from the logits that it has anyway."""
        return self.reduction != "none" and any(self.wanted)

    @property
    def inputs(self) -> Tensor:
        """The hidden states on whose device the operator runs."""
        return self.student_hidden

    @property
    def leaves(self) -> tuple[Tensor | None, ...]:
        """The tensors that have gradients."""
        return self[:N_GRADIENTS]  # type: ignore[return-value]

    @property
    def models(self) -> tuple[HeadInputs, HeadInputs]:
        """The tensors of each model, with hidden states (N, D)."""
        flat = [x.reshape(-1, x.shape[-1]) for x in (self.student_hidden, self.teacher_hidden)]
        return (
            HeadInputs(flat[0], self.student_weight, self.student_bias),
            HeadInputs(flat[1], self.teacher_weight, self.teacher_bias),
        )

    def job(self) -> DivergenceJob:
        """Check the arguments; return the job."""
        caps, scales = (self.student_softcap, self.teacher_softcap), (self.student_scale, self.teacher_scale)
        options = divergence_options(self.direction, self.beta, self.temperature, caps, scales)
        reduce = ReduceOptions(
            reduction=self.reduction, token_weight=self.token_weight, normalizer=self.normalizer, shift=self.shift
        )
        student, teacher = checked_heads(
            ModelHead(self.student_hidden, self.student_weight, self.student_bias, self.head_dtype),
            ModelHead(self.teacher_hidden, self.teacher_weight, self.teacher_bias, self.head_dtype), self.vocab_size,
        )  # fmt: skip
        return divergence_job(student, teacher, options, reduce, self.chunk_tokens)

    def compute(self, job: DivergenceJob, upstream: Tensor | None) -> tuple[Tensor, list[Gradients | None]]:
        """The divergence (n,) of every counted row; with an upstream gradient (n,), the wanted gradients."""
        wanted = [upstream is not None and x for x in self.wanted[:N_INPUTS]]
        return compute(job, self.models, upstream, wanted_of(wanted))


def forward(*arguments: Any) -> tuple[Tensor, ...]:
    """Compute the divergence; for one number also its gradients, relative to `unit`."""
    given = DivergenceArguments.of(arguments)
    with as_called(given.inputs, given.autocast):
        job = given.job()
        weight = job.batch.weight.detach()
        divergence, found = given.compute(job, weight if given.is_early else None)
        result = reduced(job.batch, divergence * weight, given.reduction)
        unit = next((x.unit for x in found if x is not None), 1.0)
        dtoken_weight = dtoken_weights(given.token_weight, job.batch, divergence / unit) if given.is_early else None
    units = result.new_empty(0)
    if given.is_early:
        units = torch.full_like(result, unit) if isinstance(unit, float) else unit
    parts = [(None,) * 3 if x is None else (x.dhidden, x.dweight, x.dbias) for x in found]
    return result.contiguous(), units, *shaped((*parts[0], *parts[1], dtoken_weight), given.leaves)


def backward(upstream: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Compute the wanted gradients for any upstream gradient from the inputs."""
    given, upstream = DivergenceArguments.of(arguments), plain("the upstream gradient", upstream)
    with as_called(given.inputs, given.autocast):
        job = given.job()
        dweighed = weighed_upstream(job.batch, given.reduction, upstream)
        divergence, found = given.compute(job, dweighed * job.batch.weight.detach())
        gradients = taken_of(found, None, dtypes_of(given.leaves[:N_INPUTS]))
        dtoken_weight = dtoken_weights(given.token_weight, job.batch, dweighed * divergence)
        return shaped((*gradients, dtoken_weight), given.leaves)


def fake_forward(*arguments: Any) -> tuple[Tensor, ...]:
    """The shapes of `forward`."""
    given = DivergenceArguments.of(arguments)
    with as_called(given.inputs, given.autocast):
        job = given.job()
    dtypes: list[torch.dtype | None] = []
    for of_model in (job.student, job.teacher):
        dtypes += [of_model.dtype, of_model.dweight_dtype, accumulation_dtype(of_model.dtype)]
    wanted = given.wanted if given.is_early else [False] * N_GRADIENTS
    new = given.inputs.new_empty
    result = new(job.batch.shape if given.reduction == "none" else (), dtype=job.dtype)
    unit = new(() if given.is_early else (0,), dtype=job.dtype)
    return result, unit, *fakes(given.leaves, [*dtypes, *dtypes_of([given.token_weight])], wanted)


def fake_backward(upstream: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """The shapes of `backward`."""
    given = DivergenceArguments(*arguments)
    return fakes(given.leaves, dtypes_of(given.leaves), given.wanted)


def topk_ids(*arguments: Any) -> Tensor:
    """Check the arguments of `linear_topk_kl_div`; return its ids, for fake tensors without values."""
    *given, autocast, is_learned = arguments
    topk = TopkArguments(*map(plain, TopkArguments._fields, given))
    with as_called(topk.student_hidden, autocast):
        ids = topk._replace(token_weight=leaf(topk.token_weight, is_learned)).checked_ids()
    return ids.clone(memory_format=torch.contiguous_format)  # an operator returns none of its arguments


OPERATOR = custom_op(
    "cynosure::kl_div", forward, mutates_args=(), schema=f"({KL_DIV}) -> (Tensor result, Tensor unit, {GRADIENTS})"
)
OPERATOR.register_fake(fake_forward)

BACKWARD_OPERATOR = custom_op(
    "cynosure::kl_div_backward", backward, mutates_args=(), schema=f"(Tensor upstream, {KL_DIV}) -> ({GRADIENTS})"
)
BACKWARD_OPERATOR.register_fake(fake_backward)
BACKWARD_OPERATOR.register_autograd(refuse_second)

EARLY = EarlyGradients(torch.ops.cynosure.kl_div_backward, len(DivergenceArguments._fields), N_TENSORS, N_GRADIENTS)
OPERATOR.register_autograd(EARLY.differentiate, setup_context=EARLY.save)


TOPK_OPERATOR = custom_op("cynosure::topk_ids", topk_ids, mutates_args=(), schema=f"({TOPK_IDS}) -> Tensor")
TOPK_OPERATOR.register_fake(topk_ids)


@register_flop_formula(torch.ops.cynosure.kl_div, get_raw=True)
def forward_flops(*arguments: Any, **_: Any) -> int:
    """What `FlopCounterMode` counts: the GEMMs of the counted rows of both models."""
    given = DivergenceArguments.of(arguments)
    return divergence_flops(given, given.wanted if given.is_early else [False] * N_GRADIENTS)


@register_flop_formula(torch.ops.cynosure.kl_div_backward, get_raw=True)
def backward_flops(upstream: Tensor, *arguments: Any, **_: Any) -> int:
    """What `FlopCounterMode` counts for the backward, which computes the logits again."""
    given = DivergenceArguments.of(arguments)
    return divergence_flops(given, given.wanted)


def divergence_flops(given: DivergenceArguments, wanted: list[bool]) -> int:
    """The floating-point operations of the logits of both models, and of the wanted gradients."""
    student, teacher = (1 + of_model.dhidden + of_model.dweight for of_model in wanted_of(wanted[:N_INPUTS]))
    return gemm_flops(given, (given.student_weight, student), (given.teacher_weight, teacher))
