"""Put TRL's trainers that learn from a teacher on the fused divergence between two heads."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cynosure.loss import GradTolerance, linear_kl_div, token_stats
from cynosure.patching.inputs import Inputs
from cynosure.patching.labelled import IGNORED
from cynosure.patching.pending import deferred_recipe
from cynosure.patching.recipe import Recipe
from cynosure.patching.replaced import agree, arguments, calling
from cynosure.patching.served import refused
from cynosure.patching.trainer import TrainerPatch
from cynosure.patching.verify import attribute

CHUNKED = "_chunked_divergence_loss"  # TRL's function that a DistillationTrainer calls
NO_TEACHER = "it has no teacher model: train it unpatched"
ON_DEVICE = "on this device TRL's own kernel computes the divergence without full logits: train it unpatched"
UNLIKE = "its divergence is not that of TRL 1.16: train it unpatched"
NOT_SAMPLED = "the backward of its divergence is not sampled: leave out grad_tolerance"


class GivenHead(NamedTuple):
    """Hidden states (..., D) and a head, with the names of `Recipe`."""

    hidden: Tensor
    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    scale: float
    softcap: float | None

    @staticmethod
    def of(model: str, given: dict[str, Any]) -> "GivenHead":
        """Read the arguments of TRL's function for the "student" or the "teacher"."""
        names = ("hidden_states", "lm_head_weight", "lm_head_bias", "logit_scale", "final_logit_softcapping")
        return GivenHead(*(given[f"{model}_{name}"] for name in names))


class DivergenceCall(NamedTuple):
    """Which divergence is computed of which tokens, and how it is reduced."""

    counted: Tensor  # (...) bool
    beta: float  # as in TRL: 0 is the forward divergence, 1 the reverse one, others the generalized Jensen-Shannon one
    temperature: float
    head_dtype: torch.dtype
    reduction: Literal["mean", "sum"] = "mean"
    normalizer: Any = None  # by which the sum is divided; None: the number of counted tokens


def divergence(student: Any, teacher: Any, setting: DivergenceCall) -> Tensor:
    """Compute the divergence between a student and its teacher, from the head or recipe of each, without logits."""
    counted, beta, temperature, head_dtype, reduction, normalizer = setting
    direction: Any = {0.0: "forward", 1.0: "reverse"}.get(beta, "jsd")
    return linear_kl_div(
        student.hidden, student.weight, teacher.hidden.detach(), teacher.weight.detach(), student_bias=student.bias,
        teacher_bias=None if teacher.bias is None else teacher.bias.detach(), student_scale=student.scale,
        teacher_scale=teacher.scale, student_softcap=student.softcap, teacher_softcap=teacher.softcap,
        direction=direction, beta=beta if direction == "jsd" else None, temperature=temperature,
        token_weight=counted.float(), head_dtype=head_dtype, reduction=reduction, normalizer=normalizer,
    )  # fmt: skip


def chunked_divergence(given: dict[str, Any], head_dtype: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return what TRL's function does: the loss, the sum of the student's entropies, and the number of tokens.

    As in TRL, logits are not rounded to a dtype narrower than float32.
    """
    student, teacher = GivenHead.of("student", given), GivenHead.of("teacher", given)
    dtype = head_dtype or torch.promote_types(student.hidden.dtype, torch.float32)
    counted, temperature = given["completion_mask"] != 0, given["temperature"]
    setting = DivergenceCall(counted, given["beta"], temperature, dtype, normalizer=given["num_items_in_batch"])
    stats = token_stats(
        student.hidden, student.weight, torch.where(counted, 0, IGNORED), bias=student.bias, head_dtype=dtype,
        scale=student.scale / temperature, softcap=None if student.softcap is None else student.softcap / temperature,
    )  # fmt: skip
    return divergence(student, teacher, setting), torch.where(counted, stats.entropy, 0.0).sum(), counted.sum()


class TaughtTrainerPatch(TrainerPatch):
    """The handle of a patched trainer that learns from a teacher; `reference_patch` is the teacher's."""

    REFERENCE = "teacher_model"

    @classmethod
    def on(
        cls,
        trainer: Any,
        example: Inputs | None = None,
        grad_tolerance: GradTolerance | None = None,
        head_dtype: torch.dtype | None = None,
    ) -> TrainerPatch:
        """Enter the patch of a trainer. Raises as `TrainerPatch.on` does, and ValueError for a `grad_tolerance`."""
        if grad_tolerance:
            raise refused(NOT_SAMPLED)
        return super().on(trainer, example, grad_tolerance, head_dtype)

    @staticmethod
    def check(trainer: Any) -> None:
        """Raise ValueError for a trainer without a teacher of its own."""
        if getattr(trainer, "teacher_model", None) is None:
            raise refused(NO_TEACHER)


class DistillationPatch(TaughtTrainerPatch):
    """The handle of a patched DistillationTrainer, which gives hidden states and heads to a function of TRL."""

    REPLACED = ("_compute_loss",)

    @staticmethod
    def check(trainer: Any) -> None:
        """Raise ValueError if TRL's function needs no patch here, or is not the one that we know."""
        TaughtTrainerPatch.check(trainer)
        if trainer.accelerator.device.type != "cpu":
            raise refused(ON_DEVICE)
        caller = getattr(getattr(trainer, "_compute_loss", None), "__func__", None)
        names = getattr(getattr(caller, "__code__", None), "co_names", ())
        if (
            caller is None
            or CHUNKED not in names
            or not agree(both_divergences(caller.__globals__.get(CHUNKED), trainer))
        ):
            raise refused(UNLIKE)

    def replace(self) -> None:
        own = self.trainer._compute_loss
        function = partial(self.chunked, own.__func__.__globals__[CHUNKED])
        self.trainer._compute_loss = calling(own, {CHUNKED: function})

    def chunked(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Compute what TRL's own function would."""
        return chunked_divergence(arguments(own, *args, **kwargs), self.model_patch.head_dtype)


class GKDPatch(TaughtTrainerPatch):
    """The handle of a patched GKDTrainer, which computes a divergence from the logits of two models."""

    REPLACED = ("compute_loss", "generalized_jsd_loss")

    @staticmethod
    def check(trainer: Any) -> None:
        """Raise ValueError if there is no teacher, or if the divergence is not the one that we know."""
        TaughtTrainerPatch.check(trainer)
        if not agree(both_jsds(trainer.generalized_jsd_loss, trainer.beta)):
            raise refused(UNLIKE)

    def replace(self) -> None:
        trainer = self.trainer
        self.own_loss, self.own_jsd = trainer.compute_loss, trainer.generalized_jsd_loss
        trainer.compute_loss, trainer.generalized_jsd_loss = self.compute_loss, self.generalized_jsd_loss

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Call the trainer's own: the models get no labels, but their logits are still deferred."""
        patches = [part for part in (self.model_patch, self.reference_patch) if part is not None]
        with ExitStack() as stack:
            for part in patches:
                stack.enter_context(attribute(part, "without_labels", True))
            return self.own_loss(*args, **kwargs)

    def generalized_jsd_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute what the trainer's own function would, which gets logits that a reduction needs in full."""
        given = arguments(self.own_jsd, *args, **kwargs)
        student, teacher = (deferred_recipe(given[name]) for name in ("student_logits", "teacher_logits"))
        reduced = given["num_items_in_batch"] is not None or given["reduction"] in ("batchmean", "sum")
        if student is None or teacher is None or self.reference_patch is None or not reduced:
            return self.own_jsd(*args, **kwargs)  # type: ignore[no-any-return]
        self.model_patch.ready()
        self.reference_patch.ready()
        return student.hooked(generalized_jsd(student, teacher, given))


def generalized_jsd(student: Recipe, teacher: Recipe, given: dict[str, Any]) -> Tensor:
    """Return what TRL's function does for the logits of two recipes."""
    labels, normalizer = given["labels"], given["num_items_in_batch"]
    reduction: Literal["mean", "sum"] = "mean"
    if labels is None:
        counted = torch.ones(student.rows, dtype=torch.bool, device=student.hidden.device)
    else:
        counted = labels.to(student.hidden.device) != IGNORED
    if normalizer is None:
        reduction = "sum" if given["reduction"] == "sum" else "mean"
        normalizer = max(len(counted), 1) if labels is None and reduction == "mean" else None
    dtype = torch.promote_types(student.head_dtype, teacher.head_dtype)
    setting = DivergenceCall(counted, given["beta"], given["temperature"], dtype, reduction, normalizer)
    return divergence(student, teacher, setting)


def both_divergences(own: Any, trainer: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the results of `chunked_divergence` and of TRL's function on a few random tokens, and their gradients."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    given = {
        "student_hidden_states": draw(2, 3, 4), "teacher_hidden_states": draw(2, 3, 5),
        "student_lm_head_weight": draw(7, 4), "teacher_lm_head_weight": draw(7, 5),
        "completion_mask": torch.tensor([[1, 1, 0], [1, 0, 0]]), "beta": trainer.beta, "num_items_in_batch": 2,
        "student_lm_head_bias": draw(7), "teacher_lm_head_bias": draw(7), "student_logit_scale": 0.7,
        "teacher_logit_scale": 1.3, "student_final_logit_softcapping": 3.0, "teacher_final_logit_softcapping": 4.0,
        "temperature": trainer.temperature,
    }  # fmt: skip
    leaf = given["student_hidden_states"].requires_grad_()
    both = chunked_divergence(given, None), own(**given)
    yield from zip(*both, strict=True)
    yield torch.autograd.grad(both[0][0], leaf)[0], torch.autograd.grad(both[1][0], leaf)[0]


def both_jsds(own: Any, beta: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the results of `generalized_jsd` and of a GKDTrainer's own function on a few random tokens."""
    generator, dtype = torch.Generator().manual_seed(0), torch.float32
    states, matrix = (torch.randn(2, *shape, generator=generator) for shape in ((2, 3, 4), (7, 4)))
    student, teacher = (
        Recipe(*parts, None, 1.0, None, dtype, dtype, dtype) for parts in zip(states, matrix, strict=True)
    )
    labels = torch.tensor([[1, 1, IGNORED], [1, IGNORED, IGNORED]])
    for options in ({"labels": labels}, {"labels": labels, "num_items_in_batch": 2}, {"reduction": "sum"}):
        call = arguments(own, student.logits(), teacher.logits(), beta=beta, **options)
        yield generalized_jsd(student, teacher, call), own(**call)
