"""Patch a trainer that minimises a cross-entropy: average its evaluation over tokens."""

from typing import Any

import torch

from cynosure.loss import GradTolerance, TokenStats, TokenSums
from cynosure.patching.inputs import Inputs
from cynosure.patching.served import added_inputs, check_cross_entropy_trainer
from cynosure.patching.smoothing import Smoother
from cynosure.patching.trainer import TrainerPatch

THEIRS = {"entropy": "entropy", "mean_token_accuracy": "accuracy"}  # TRL's names of our metrics


class EvaluatedTrainerPatch(TrainerPatch):
    """The handle of a patched trainer whose evaluation is a cross-entropy."""

    check = staticmethod(check_cross_entropy_trainer)
    REPLACED = ("evaluation_loop", "prediction_step", "compute_loss", "compute_loss_func", "label_smoother")

    def __init__(
        self,
        trainer: Any,
        example: Inputs | None = None,
        grad_tolerance: GradTolerance | None = None,
        head_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(trainer, example, grad_tolerance, head_dtype)
        self.own_loop, self.own_step = trainer.evaluation_loop, trainer.prediction_step
        self.own_loss = trainer.compute_loss
        self.added = added_inputs(trainer.compute_loss_func)  # None: it is not ours
        smoother = trainer.label_smoother if self.added is None else None
        self.smoother = None if smoother is None else Smoother(smoother, self.model_patch)
        self.batches: list[TokenStats] = []
        self.sums = torch.zeros(5, dtype=torch.float64)  # of TokenSums.rows, and of the minimised loss

    def replace(self) -> None:
        trainer = self.trainer
        trainer.evaluation_loop, trainer.prediction_step = self.evaluation_loop, self.prediction_step
        if self.smoother is not None:
            trainer.compute_loss, trainer.label_smoother = self.smoothed_loss, self.smoother
        if self.added is not None:
            trainer.compute_loss = self.model_loss
            trainer.compute_loss_func = trainer.label_smoother = None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Run Trainer's own loop, then replace its loss by the mean over tokens and add the other metrics."""
        self.sums = torch.zeros_like(self.sums)
        self.model_patch.observer = self.batches.append
        try:
            output = self.own_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        finally:
            self.model_patch.observer = None
        metrics = metrics_of(TokenSums.of(self.sums[:4]), float(self.sums[4]))
        # TRL would replace two of them by means over batches.
        theirs = getattr(self.trainer, "_metrics", {}).get("eval", {})
        theirs.update({name: [metrics[own]] for name, own in THEIRS.items() if name in theirs and metrics})
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def model_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Call Trainer's own instead of `causal_lm_loss`: the patched model computes the same loss."""
        added = dict(self.added or {})
        n_items = added.pop("normalizer", num_items_in_batch)
        return self.own_loss(model, {**inputs, **added}, return_outputs, n_items)

    def smoothed_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Call Trainer's own under label smoothing: the model gets no labels, but its logits are still deferred."""
        self.model_patch.without_labels = True
        try:
            return self.own_loss(*args, **kwargs)
        finally:
            self.model_patch.without_labels = False

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call Trainer's own; also gather the sums of each text, without texts that only pad the last batch."""
        self.batches.clear()
        minimised = [] if self.smoother is None else self.smoother.sums
        minimised.clear()
        result = self.own_step(*args, **kwargs)
        if self.batches:
            accelerator = self.trainer.accelerator
            rows = torch.cat([TokenSums.rows(stats) for stats in self.batches])
            last = torch.cat(minimised).to(rows) if minimised else rows[:, 1]
            rows = torch.cat([rows, last[:, None]], 1)
            rows = accelerator.gather_for_metrics(
                rows.to(accelerator.device) if accelerator.num_processes > 1 else rows
            )
            self.sums += rows.cpu().sum(0)
        return result


def metrics_of(sums: TokenSums, minimised: float) -> dict[str, float]:
    """Return the `eval_` metrics from these sums and the sum of the minimised loss; {} without tokens."""
    if not sums.tokens:
        return {}
    return {
        "loss": minimised / sums.tokens,
        "perplexity": sums.perplexity,
        "accuracy": sums.accuracy,
        "entropy": sums.mean_entropy,
        "tokens": sums.tokens,
    }
