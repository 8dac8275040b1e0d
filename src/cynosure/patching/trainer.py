"""Put a trainer on the fused loss: patch its models."""

from typing import Any

import torch

from cynosure.loss import GradTolerance
from cynosure.patching.entered import Entered
from cynosure.patching.inputs import Inputs
from cynosure.patching.model import Patch
from cynosure.patching.served import check_policy_trainer


class TrainerPatch(Entered):
    """The handle of a patched trainer. `undo`, or the end of its `with` block, restores the trainer and its models.

    A Trainer of transformers or an SFTTrainer of TRL minimises a cross-entropy. Its evaluation divides the nats of all
    tokens by their number, once; Trainer averages over batches. So `eval_loss` does not depend on the batch size or on
    how texts of unequal length are batched. Evaluation also reports `eval_perplexity`, `eval_accuracy` (argmax equals
    target), `eval_entropy` (nats per token) and `eval_tokens`. Under `label_smoothing_factor`, `eval_loss` is smoothed
    as Trainer's own is; the other metrics are not.

    TRL's DPOTrainer, KTOTrainer, GRPOTrainer and RLOOTrainer compute their loss from log-probabilities of tokens. The
    models compute those without logits. The trainer's loss, metrics and evaluation stay as they are.

    TRL's DistillationTrainer and GKDTrainer compute a divergence between a teacher's distributions and the model's. It
    is computed from hidden states and heads instead. CPOTrainer and ORPOTrainer read log-probabilities from logits; the
    model computes those without logits too. What TRL's own functions compute is compared first, on a few random tokens.

    Attributes:
        trainer: the trainer.
        model_patch: the handle of its model.
        reference_patch: the handle of its reference model or teacher; None if it has none, or if that is its model
            without the adapter.
    """

    check = staticmethod(check_policy_trainer)
    REFERENCE = "ref_model"  # the trainer's name of its reference model
    REPLACED: tuple[str, ...] = ()  # what `replace` changes in the trainer

    def __init__(
        self,
        trainer: Any,
        example: Inputs | None = None,
        grad_tolerance: GradTolerance | None = None,
        head_dtype: torch.dtype | None = None,
    ) -> None:
        self.check(trainer)
        self.trainer = trainer
        self.own = {name: vars(trainer)[name] for name in self.REPLACED if name in vars(trainer)}
        self.model_patch = Patch.on(trainer.model, example, grad_tolerance, head_dtype)
        self.reference_patch: Patch | None = None
        reference = getattr(trainer, self.REFERENCE, None)
        if reference is not None:
            try:
                self.reference_patch = Patch.on(reference, example, None, head_dtype)
            except BaseException:
                self.model_patch.leave()
                raise

    @classmethod
    def on(
        cls,
        trainer: Any,
        example: Inputs | None = None,
        grad_tolerance: GradTolerance | None = None,
        head_dtype: torch.dtype | None = None,
    ) -> "TrainerPatch":
        """Enter the patch of a trainer; apply it if needed. Raises as `Patch.on` does."""
        handle: TrainerPatch | None = vars(trainer).get("_cynosure_patch")
        if handle is None:
            handle = cls(trainer, example, grad_tolerance, head_dtype)
            trainer._cynosure_patch = handle
            handle.replace()
        elif grad_tolerance is not None or head_dtype is not None:
            Patch.on(trainer.model, None, grad_tolerance, head_dtype).leave()
            if handle.reference_patch is not None:
                Patch.on(getattr(trainer, handle.REFERENCE), None, None, head_dtype).leave()
        handle.entries += 1
        return handle

    def replace(self) -> None:
        """Replace what the patch changes in the trainer itself."""

    def restore(self) -> None:
        """Undo `replace`."""
        for name in self.REPLACED:
            vars(self.trainer).pop(name, None)
        vars(self.trainer).update(self.own)

    def undo(self) -> None:
        """Restore the trainer and its models at once, however often they were patched. Further calls do nothing.

        A model that was patched before the trainer stays patched.
        """
        self.entries = 0
        if vars(self.trainer).pop("_cynosure_patch", None) is None:
            return
        self.model_patch.leave()
        if self.reference_patch is not None:
            self.reference_patch.leave()
        self.restore()
