"""Which trainers `patch` takes, and why it refuses the others."""

from functools import partial
from typing import Any

from cynosure.patching.causal import causal_lm_loss
from cynosure.patching.find import find_causal_lm
from cynosure.patching.forward import fused_head

LOSSES_OF = ("transformers.trainer", "trl.trainer.sft_trainer")  # their compute_loss is the cross-entropy
POLICIES = {"DPOTrainer", "KTOTrainer", "GRPOTrainer", "RLOOTrainer"}  # compute log-probabilities of tokens
ALONE = "patch only its model, patch(trainer.model); that helps if its compute_loss passes labels to the model"
FULL = "its loss reads full logits, which a patch would not avoid: train it unpatched"
DIVERGENCE = "it reads the heads of teacher and student itself, and materializes no full logits: train it unpatched"
REASONS = {
    "RewardTrainer": "its model predicts a reward and has no vocabulary: train it unpatched",
    "AsyncDistillationTrainer": DIVERGENCE,
    "ServerDistillationTrainer": "its teacher is on a server, which sends log-probabilities: train it unpatched",
    **dict.fromkeys(("A2POTrainer", "OnlineDPOTrainer", "TPOTrainer"), FULL),
    **dict.fromkeys(("GOLDTrainer", "IWOPDTrainer", "SDFTTrainer", "SDPOTrainer"), FULL),
}


def is_policy_trainer(trainer: Any) -> bool:
    """Whether this is a trainer of TRL whose loss is computed from log-probabilities of tokens."""
    return not POLICIES.isdisjoint(trl_names(trainer))


def trl_names(trainer: Any) -> list[str]:
    """Return the names of the classes of TRL that a trainer is an instance of."""
    return [kind.__name__ for kind in type(trainer).__mro__ if kind.__module__.startswith("trl.")]


def check_policy_trainer(trainer: Any) -> None:
    """Raise ValueError for a trainer whose models have no fused head, as in earlier versions of TRL."""
    if fused_head(find_causal_lm(trainer.model).forward) is None:
        raise refused("its version of TRL computes its loss from full logits: upgrade trl to 1.16")


def check_cross_entropy_trainer(trainer: Any) -> None:
    """Raise ValueError for a trainer that minimises something else, or whose model is created when it starts."""
    if trainer.model_init is not None:
        raise ValueError("this trainer creates its model when it starts: patch the model inside model_init instead")
    reason = next((REASONS[name] for name in trl_names(trainer) if name in REASONS), None)
    if reason is not None:
        raise refused(reason)
    if trainer.compute_loss_func and added_inputs(trainer.compute_loss_func) is None:
        raise refused("its compute_loss_func computes a loss from full logits: train without it")
    minimised = getattr(trainer.args, "loss_type", None) or "nll"
    if minimised != "nll":
        name = minimised if isinstance(minimised, str) else ", ".join(minimised)
        raise refused(f"it minimises {name}, not the cross-entropy: {ALONE}")
    made_by = getattr(trainer.compute_loss, "__func__", None)
    if getattr(made_by, "__module__", "") not in LOSSES_OF:
        raise refused(f"it has its own compute_loss, so eval_loss would be another metric: {ALONE}")
    if trainer.args.n_gpu > 1:
        raise refused("in one process it splits a batch over several GPUs by DataParallel: start it with torchrun")


def refused(reason: str) -> ValueError:
    return ValueError(f"this trainer cannot be patched: {reason}")


def added_inputs(function: Any) -> dict[str, Any] | None:
    """Return what a trainer's `compute_loss_func` adds to a batch if it is `causal_lm_loss`, or else None.

    A partial of it adds its keywords.
    """
    if isinstance(function, partial) and not function.args:
        return function.keywords if function.func is causal_lm_loss else None
    return {} if function is causal_lm_loss else None
