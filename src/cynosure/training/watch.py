"""Watch a training: its metrics step by step, the smoothed loss, and signs that it goes wrong."""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from cynosure.auditing import MARGIN, initial_cost
from cynosure.measure import Say
from cynosure.training.settings import TrainingPlan

SMOOTHING = 0.95  # weight of the past in each step

Figures = dict[str, Any]  # a line of metrics.jsonl, of validation.jsonl or of samples.jsonl


class Watcher:
    """Follows a training. Every method does nothing; override those you need in a subclass.

    Example:
        >>> class Losses(Watcher):
        ...     def step(self, figures: Figures) -> None:
        ...         print(figures["step"], figures["loss"])
        >>> Losses().step({"step": 1, "loss": 2.5})
        1 2.5
    """

    def begin(self, plan: TrainingPlan, facts: Figures) -> None:
        """Called before the first step, with the plan and the manifest's facts about model and texts."""

    def step(self, figures: Figures) -> None:
        """Called after every optimizer step, with its line of `metrics.jsonl`."""

    def validation(self, figures: Figures, samples: list[Figures]) -> None:
        """Called after every validation, with its lines of `validation.jsonl` and `samples.jsonl`."""

    def scoring(self, n_bytes: int) -> AbstractContextManager[Say | None]:
        """Called before all held-out texts are scored; the context may yield a function to call per batch."""
        return nullcontext()

    def note(self, text: str) -> None:
        """Called with a message for the user."""


class Diverged(RuntimeError):
    """The loss diverged. The message says at which step, and how to continue."""


class Smoothed:
    """An exponential moving average of the losses, corrected for its start."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self.total, self.weight = 0.0, 0.0
        for loss in losses:
            self.add(loss)

    def add(self, loss: float) -> None:
        if loss == 0.0:
            return  # a batch with nothing to predict
        self.total = SMOOTHING * self.total + (1 - SMOOTHING) * loss
        self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)

    @property
    def value(self) -> float | None:
        return self.total / self.weight if self.weight else None


def what_is_wrong(loss: float, grad_norm: float, smoothed: float | None, spike: float) -> str | None:
    """Return the reason why training should stop, or None."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(grad_norm):
        return f"the gradient norm is {grad_norm}"
    if smoothed is not None and loss > smoothed + spike:
        return f"the loss is {loss:.4f}, more than {spike:g} nats above its smoothed value {smoothed:.4f}"
    return None


def odd_beginning(model: Any, loss: float, n_classes: int, fresh: bool) -> str | None:
    """Compare the first loss with ln V, that of a uniform guess. Return what is odd about it, or None."""
    uniform = math.log(n_classes)
    comparison = f"the first loss is {loss:.4f} nats/token, and ln {n_classes:,} is {uniform:.4f}"
    allowed = MARGIN + (initial_cost(model, n_classes) if fresh else 0.0)
    if loss > uniform + allowed:
        why = "the initialization is too wide" if fresh else "the model does not fit its tokenizer, or this text"
        return f"{comparison}: worse than a uniform guess; {why}"
    if fresh and loss < uniform - allowed:
        return f"{comparison}: an untrained model cannot be that good"
    return None
