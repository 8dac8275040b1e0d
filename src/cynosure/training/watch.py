"""Watching a training: its figures step by step, what they are smoothed to, and when they go wrong."""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from cynosure.auditing import MARGIN, initial_cost
from cynosure.measure import Say
from cynosure.training.settings import TrainingPlan

SMOOTHING = 0.95  # of what was before, a step

Figures = dict[str, Any]  # a line of metrics.jsonl, of validation.jsonl or of samples.jsonl


class Watcher:
    """Is told how a training goes; each method does nothing until a subclass lets it."""

    def begin(self, plan: TrainingPlan, facts: Figures) -> None:
        """Before the first step: the plan, and what the run's manifest says of model and text."""

    def step(self, figures: Figures) -> None:
        """After every step of the optimiser."""

    def validation(self, figures: Figures, samples: list[Figures]) -> None:
        """After every validation."""

    def scoring(self, n_bytes: int) -> AbstractContextManager[Say | None]:
        """While all that is held out is scored at the end: what this gives, if anything, is called for every batch."""
        return nullcontext()

    def note(self, text: str) -> None:
        """Something a user should know."""


class Diverged(RuntimeError):
    """The loss diverged. The message says where, and how to go on."""


class Smoothed:
    """An average that forgets: of the losses so far, the last of them counting most."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self.total, self.weight = 0.0, 0.0
        for loss in losses:
            self.add(loss)

    def add(self, loss: float) -> None:
        if loss == 0.0:
            return  # of a batch in which there was nothing to predict
        self.total = SMOOTHING * self.total + (1 - SMOOTHING) * loss
        self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)

    @property
    def value(self) -> float | None:
        return self.total / self.weight if self.weight else None


def what_is_wrong(loss: float, grad_norm: float, smoothed: float | None, spike: float) -> str | None:
    """Why training should stop, or None."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(grad_norm):
        return f"the norm of the gradient is {grad_norm}"
    if smoothed is not None and loss > smoothed + spike:
        return f"the loss is {loss:.4f}, more than {spike:g} nats above its smoothed {smoothed:.4f}"
    return None


def odd_beginning(model: Any, loss: float, n_classes: int, fresh: bool) -> str | None:
    """What is wrong with the first loss of a training against ln V, the loss of knowing nothing; None if nothing is."""
    knows_nothing = math.log(n_classes)
    figures = f"the first loss is {loss:.4f} nats/token, and ln {n_classes:,} is {knows_nothing:.4f}"
    allowed = MARGIN + (initial_cost(model, n_classes) if fresh else 0.0)
    if loss > knows_nothing + allowed:
        why = "its initialisation is too wide" if fresh else "it does not fit its tokenizer, or this text"
        return f"{figures}: worse than knowing nothing; {why}"
    if fresh and loss < knows_nothing - allowed:
        return f"{figures}: a model that has learnt nothing cannot know that much"
    return None
