"""The public functions `patch` and `unpatch`."""

from typing import Any

import torch
from torch import nn

from cynosure.loss import GradTolerance
from cynosure.patching.distillation import DistillationPatch, GKDPatch
from cynosure.patching.evaluation import EvaluatedTrainerPatch
from cynosure.patching.find import find_causal_lm
from cynosure.patching.model import Patch
from cynosure.patching.preferences import PreferencePatch
from cynosure.patching.served import is_policy_trainer, trl_names
from cynosure.patching.trainer import TrainerPatch

OTHERS: dict[str, type[TrainerPatch]] = {
    "DistillationTrainer": DistillationPatch,
    "GKDTrainer": GKDPatch,
    **dict.fromkeys(("CPOTrainer", "ORPOTrainer"), PreferencePatch),
}


def patch(
    target: Any,
    example: dict[str, Any] | None = None,
    *,
    grad_tolerance: GradTolerance | None = None,
    head_dtype: torch.dtype | None = None,
) -> Patch | TrainerPatch:
    """Put a language model of transformers, or a Trainer and its models, on the fused loss.

    `model(..., labels=...)` works as before, until `undo()` or the end of a `with` block. The model's own loss function
    runs with all its options, and gives the same loss, gradients and auxiliary losses. But the logits are not
    materialized: the output has a stand-in for them, which materializes them when they are read. Without labels nothing
    changes. The model may have an encoder, images or sound. PEFT may wrap it, including low-rank updates of the head.
    torch.compile works, with graph breaks around the head.

    For a Trainer of transformers or an SFTTrainer of TRL, `patch` patches its model, and evaluation averages over
    tokens. For TRL's DPOTrainer, KTOTrainer, GRPOTrainer, RLOOTrainer, CPOTrainer and ORPOTrainer it patches the model
    and a separate reference model, and leaves evaluation as it is. So it does for DistillationTrainer (on a CPU) and
    GKDTrainer, with their teacher. See `TrainerPatch`.

    Patching again returns the same handle; the end of an inner `with` block leaves the model patched. A patched model
    can be copied, pickled and sent to other processes, and stays patched there. To load its pickle without cynosure,
    `unpatch` the model before pickling it, or save only its weights.

    The patch follows the model's operations on its logits (scale, softcap, bias, padded vocabulary, another shape,
    fewer rows) up to `F.cross_entropy`. `patch` verifies on a few tokens that the loss and its gradients are equal.

    Args:
        target: a model of transformers, or a Trainer.
        example: a batch with labels. Only needed for a model whose inputs cannot be guessed.
        grad_tolerance: relative error that sampling may add to the gradients of the hidden states and the head's
            weight, or "dtype", as for `linear_cross_entropy`. The loss stays exact, and so does the verification. None:
            exact gradients, or the tolerance that the model is already patched with. Only on a CPU.
        head_dtype: dtype of the head's matmul and its logits in every loss, as for `linear_cross_entropy`: float32 for
            a model in bfloat16, which then verifies to the rounding of bfloat16. The weight stays as it is, and a
            reference model gets the same. Without labels the model's own logits do not change. None: the model's own
            dtype, or the one that it is already patched with.

    Returns:
        The handle, which is also a context manager.

    Raises:
        ValueError: the verification fails; the message has the reason. Or `grad_tolerance` is not in [0, 1).
        TypeError: the target is neither a model nor a Trainer, or `head_dtype` is not a dtype that torch computes in.
        NotImplementedError: `grad_tolerance` is above 0, and the model is not on a CPU.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model, ids = LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes)), torch.arange(12)[None]
        >>> own = model(ids, labels=ids).loss
        >>> with patch(model):
        ...     fused = model(ids, labels=ids).loss
        >>> torch.testing.assert_close(fused, own)
    """
    if hasattr(target, "evaluation_loop"):
        return kind_of(target).on(target, example, grad_tolerance, head_dtype)
    return Patch.on(target, example, grad_tolerance, head_dtype)


def kind_of(trainer: Any) -> type[TrainerPatch]:
    """Return the class of a trainer's handle."""
    if is_policy_trainer(trainer):
        return TrainerPatch
    return OTHERS.get(next(iter(trl_names(trainer)), ""), EvaluatedTrainerPatch)


def unpatch(target: Any) -> None:
    """Undo `patch` on a model, or on a Trainer and its models; do nothing if it is not patched.

    The patch ends at once, even inside its `with` blocks.

    Args:
        target: what `patch` takes.

    Raises:
        TypeError: the target is neither a model nor a Trainer.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes))
        >>> handle = patch(model)
        >>> unpatch(model)
        >>> "_cynosure_patch" in vars(model)
        False
    """
    if hasattr(target, "evaluation_loop"):
        applied = vars(target).get("_cynosure_patch")
        if applied is not None:
            applied.undo()
        for name in ("ref_model", "teacher_model"):
            if isinstance(getattr(target, name, None), nn.Module):
                unpatch(getattr(target, name))
        target = target.model
    try:
        model = find_causal_lm(target)
    except TypeError:
        kind = type(target).__name__
        raise TypeError(f"unpatch needs a causal language model of transformers or a Trainer, got {kind}") from None
    applied = vars(model).get("_cynosure_patch")
    if applied is not None:
        applied.undo()
