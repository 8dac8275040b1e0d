"""Who takes part in training: each contestant is one function from a loaded model to its steps."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.contestants import OURS, Contestant
from benchmarks.results import LIMIT, TRANSFORMERS

if TYPE_CHECKING:  # the parent process looks names up here and must not pay for torch
    from cynosure.models import LanguageModel


class TrainWork(NamedTuple):
    """A loaded model, and what it is trained on."""

    model: "LanguageModel"
    texts: list[list[int]]  # token ids, each as long as the others
    n_rows: int  # of these a step
    n_steps: int
    autocast: bool  # in bfloat16, of float32 weights


Step = Callable[[], float]  # one step of the optimizer: the loss before it


def build_cynosure(work: TrainWork) -> Step:
    from benchmarks.stepping import Stepper
    from cynosure.patching import patch

    patch(work.model.model)
    return Stepper(work)


def build_transformers(work: TrainWork) -> Step:
    from benchmarks.stepping import Stepper

    return Stepper(work)


def build_loop(work: TrainWork) -> Step:
    from benchmarks.loop import Loop

    return Loop(work)


def build_limit(work: TrainWork) -> Step:
    from benchmarks.stepping import Stepper, products_only, replace_loss

    replace_loss(work.model.model, products_only(work))
    return Stepper(work)


def build_exact(work: TrainWork) -> Step:
    """No contestant: whose curve the others' are held to."""
    from benchmarks.stepping import Stepper, exact_loss, replace_loss

    replace_loss(work.model.model, exact_loss)
    return Stepper(work)


TRAIN_CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant(OURS, "Trainer(model), after cynosure.patch(model)", build_cynosure),
        Contestant(TRANSFORMERS, "Trainer(model), with the model's own loss", build_transformers),
        Contestant("loop", "a short loop of one's own, F.cross_entropy of full logits", build_loop),
        Contestant(LIMIT, "the same, head and loss being the head's three products alone", build_limit, checked=False),
    )
}
