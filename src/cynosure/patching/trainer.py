"""Put a Trainer on the fused loss: patch its model, and average its evaluation over tokens."""

from typing import Any

import torch

from cynosure.loss import GradTolerance, TokenStats, TokenSums
from cynosure.patching.entered import Entered
from cynosure.patching.inputs import Inputs
from cynosure.patching.model import Patch
from cynosure.patching.smoothing import Smoother

REPLACED = ("evaluation_loop", "prediction_step", "compute_loss", "label_smoother")
ALONE = "patch only its model, patch(trainer.model); that helps if its compute_loss passes labels to the model"
LOSSES_OF = ("transformers.trainer", "trl.trainer.sft_trainer")  # their compute_loss is the cross-entropy
THEIRS = {"entropy": "entropy", "mean_token_accuracy": "accuracy"}  # TRL's names of our metrics


class TrainerPatch(Entered):
    """The handle of a patched Trainer. `undo`, or the end of its `with` block, restores the Trainer and its model.

    Evaluation divides the nats of all tokens by their number, once; Trainer averages over batches. So `eval_loss` does
    not depend on the batch size or on how texts of unequal length are batched. Evaluation also reports
    `eval_perplexity`, `eval_accuracy` (argmax equals target), `eval_entropy` (nats per token) and `eval_tokens`. Under
    `label_smoothing_factor`, `eval_loss` is smoothed as Trainer's own is; the other metrics are not.
    """

    def __init__(
        self, trainer: Any, example: Inputs | None = None, grad_tolerance: GradTolerance | None = None
    ) -> None:
        self.trainer = trainer
        check_trainer(trainer)
        self.model_patch = Patch.on(trainer.model, example, grad_tolerance)
        self.own = {name: vars(trainer)[name] for name in REPLACED if name in vars(trainer)}
        self.own_loop, self.own_step = trainer.evaluation_loop, trainer.prediction_step
        self.own_loss = trainer.compute_loss
        smoother = trainer.label_smoother
        self.smoother = None if smoother is None else Smoother(smoother, self.model_patch)
        self.batches: list[TokenStats] = []
        self.sums = torch.zeros(5, dtype=torch.float64)  # of TokenSums.rows, and of the minimised loss

    @classmethod
    def on(
        cls, trainer: Any, example: Inputs | None = None, grad_tolerance: GradTolerance | None = None
    ) -> "TrainerPatch":
        """Enter the patch of a trainer; apply it if needed. Raises as `Patch.on` does."""
        handle: TrainerPatch | None = vars(trainer).get("_cynosure_patch")
        if handle is None:
            handle = cls(trainer, example, grad_tolerance)
            trainer._cynosure_patch = handle
            trainer.evaluation_loop, trainer.prediction_step = handle.evaluation_loop, handle.prediction_step
            if handle.smoother is not None:
                trainer.compute_loss, trainer.label_smoother = handle.compute_loss, handle.smoother
        elif grad_tolerance is not None:
            handle.model_patch.allow(grad_tolerance)
        handle.entries += 1
        return handle

    def undo(self) -> None:
        """Restore trainer and model at once, however often they were patched. Further calls do nothing.

        A model that was patched before the trainer stays patched.
        """
        self.entries = 0
        if vars(self.trainer).pop("_cynosure_patch", None) is None:
            return
        self.model_patch.leave()
        for name in REPLACED:
            vars(self.trainer).pop(name, None)
        vars(self.trainer).update(self.own)

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

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
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


def check_trainer(trainer: Any) -> None:
    """Raise ValueError for a trainer whose loss needs full logits, or whose model is created when it starts."""
    if trainer.model_init is not None:
        raise ValueError("this trainer creates its model when it starts: patch the model inside model_init instead")
    if trainer.compute_loss_func:
        raise ValueError(
            "this trainer cannot be patched: its compute_loss_func computes a loss from full logits: train without it"
        )
    minimised = getattr(trainer.args, "loss_type", None) or "nll"
    if minimised != "nll":
        name = minimised if isinstance(minimised, str) else ", ".join(minimised)
        raise ValueError(f"this trainer cannot be patched: it minimises {name}, not the cross-entropy: {ALONE}")
    made_by = getattr(trainer.compute_loss, "__func__", None)
    if getattr(made_by, "__module__", "") not in LOSSES_OF:
        raise ValueError(
            "this trainer cannot be patched: it has its own compute_loss, so eval_loss would be another metric: "
            + ALONE
        )
    if trainer.args.n_gpu > 1:
        raise ValueError(
            "this trainer cannot be patched: in one process it splits a batch over several GPUs by DataParallel: "
            "start it with torchrun"
        )
