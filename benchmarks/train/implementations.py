"""The implementations of training: each is one function from a loaded model to its steps."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.implementation import LIMIT, OURS, TOLERANCE, Implementation, by_name

if TYPE_CHECKING:  # the parent process looks names up here and must not pay for torch
    from cynosure.models import LanguageModel

TRANSFORMERS = "transformers"


class TrainWork(NamedTuple):
    """A loaded model, and what it is trained on."""

    model: "LanguageModel"
    texts: list[list[int]]  # token ids, each as long as the others
    n_rows: int  # of these a step
    n_steps: int
    autocast: bool  # in bfloat16, of float32 weights


Step = Callable[[], float]  # one step of the optimizer: the loss before it


def build_cynosure(work: TrainWork) -> Step:
    from benchmarks.train.stepping import stepper
    from cynosure.patching import patch

    patch(work.model.model)
    return stepper(work)


def build_sampled(work: TrainWork) -> Step:
    from benchmarks.train.stepping import stepper
    from cynosure.patching import patch

    patch(work.model.model, grad_tolerance=TOLERANCE)
    return stepper(work)


def build_transformers(work: TrainWork) -> Step:
    from benchmarks.train.stepping import stepper

    return stepper(work)


def build_loop(work: TrainWork) -> Step:
    from benchmarks.train.loop import Loop

    return Loop(work)


def build_limit(work: TrainWork) -> Step:
    from benchmarks.train.stepping import products_only, replace_loss, stepper

    replace_loss(work.model.model, products_only(work))
    return stepper(work)


def build_exact(work: TrainWork) -> Step:
    """None of the implementations: the curve that theirs are held to."""
    from benchmarks.train.stepping import exact_loss, replace_loss, stepper

    replace_loss(work.model.model, exact_loss)
    return stepper(work)


IMPLEMENTATIONS = by_name(
    Implementation(OURS, "Trainer(model), after cynosure.patch(model)", build_cynosure),
    Implementation(
        "sampled", "the same with grad_tolerance=2**-8", build_sampled, checked=False, grad_tolerance=TOLERANCE
    ),
    Implementation(TRANSFORMERS, "Trainer(model), with the model's own loss", build_transformers),
    Implementation("loop", "a short loop of one's own, F.cross_entropy of full logits", build_loop),
    Implementation(LIMIT, "Trainer(model), its head and loss being three matmuls alone", build_limit, checked=False),
)
