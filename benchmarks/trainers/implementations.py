"""The implementations: TRL's trainer on a loaded model, patched or as it is."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.implementation import OURS, Implementation, by_name

if TYPE_CHECKING:  # the parent process looks names up here and must not pay for torch
    from benchmarks.train.stepping import Stepper
    from cynosure.models import LanguageModel

TRL = "trl"


class TrainersWork(NamedTuple):
    """A loaded model, and what it is trained on."""

    trainer: str  # of `benchmarks.trainers.stepping.TRAINERS`
    load: "Callable[[], LanguageModel]"  # called again for a reference model
    rows: list[dict[str, str]]  # the columns that the trainer reads
    n_texts: int  # in a step
    n_new: int  # tokens of a completion
    n_steps: int
    autocast: bool  # in bfloat16, of float32 weights


def build_cynosure(work: TrainersWork) -> "Stepper":
    from benchmarks.trainers.stepping import stepper
    from cynosure.patching import patch

    return stepper(work, patch)


def build_trl(work: TrainersWork) -> "Stepper":
    from benchmarks.trainers.stepping import stepper

    return stepper(work)


def build_exact(work: TrainersWork) -> "Stepper":
    """None of the implementations: the curve that theirs are held to. Replaces TRL's head in this process."""
    from benchmarks.trainers.stepping import stepper, widen_head

    widen_head()
    return stepper(work)


def letters(completions: list[str], **_: Any) -> list[float]:
    """The reward of a completion: its share of letters."""
    return [sum(map(str.isalpha, text)) / max(1, len(text)) for text in completions]


IMPLEMENTATIONS = by_name(
    Implementation(OURS, "TRL's trainer, after cynosure.patch(trainer)", build_cynosure),
    Implementation(TRL, "TRL's trainer as it is", build_trl),
)
