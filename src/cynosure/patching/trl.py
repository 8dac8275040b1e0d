"""Per-token statistics for TRL's trainers, which call `model(..., labels=..., fused_lm_head=True)`."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from cynosure.patching.forward import FusedHead
from cynosure.patching.labelled import Items, Labelled
from cynosure.patching.pending import PendingLogits
from cynosure.patching.recipe import Recipe

if TYPE_CHECKING:
    from cynosure.patching.model import Patch


@dataclass
class PerTokenOutput(ModelOutput):
    """The fields of TRL's FusedCausalLMOutput, each (B, T - 1), or (B, T) for `shift_labels`; 0 where ignored.

    loss, log_probs and entropy have gradients.
    """

    loss: Tensor | None = None  # 0-d
    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    is_top1: Tensor | None = None
    label_mask: Tensor | None = None
    mean_logits: Tensor | None = None  # over the classes; this and the next only if the trainer's own head returns them
    log_sum_sq_probs: Tensor | None = None  # log of the sum of the squared probabilities
    aux_loss: Tensor | None = None  # 0-d, of a mixture of experts


def per_token_output(
    patched: "Patch",
    *args: Any,
    labels: Tensor | None = None,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Items = None,
    **kwargs: Any,
) -> PerTokenOutput:
    """Run a patched model and compute the statistics from its hidden states: one matmul, three more in the backward."""
    output = patched.forward(*args, **{**kwargs, "use_cache": False, "return_dict": True})
    if not isinstance(output.logits, PendingLogits) or output.logits.made is not None:
        raise ValueError(f"{type(patched.model).__name__}: {patched.why_not()}")
    patched.ready()
    recipe = scored(output.logits.recipe, patched.fused_head)
    values = values_of(Labelled.of(recipe, labels, shift_labels), patched)
    n_items = values["label_mask"].sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    loss, aux_loss = -values["log_probs"].sum() / n_items, getattr(output, "aux_loss", None)
    if aux_loss is not None:
        loss = loss + patched.model.config.get_text_config().router_aux_loss_coef * aux_loss
    return PerTokenOutput(loss, aux_loss=aux_loss, **values)


def scored(recipe: Recipe, head: FusedHead) -> Recipe:
    """Return the recipe of the logits that TRL's head scores."""
    recipe = recipe.times(1 / head.temperature)
    return replace(recipe, head_dtype=torch.float32) if head.cast_lm_head_to_fp32 else recipe


def values_of(labelled: Labelled, patched: "Patch") -> dict[str, Tensor]:
    """Compute the values of every token that TRL's head gives, by their names in `PerTokenOutput`.

    The sum of squared probabilities needs the loss at a temperature of 1/2: log sum exp(2 z) - 2 z_t.
    """
    wanted = patched.fused_head.outputs
    stats = labelled.stats([0.5] if "log_sum_sq_probs" in wanted else None)
    if patched.observer is not None and not torch.is_grad_enabled():
        patched.observer(stats)
    mask = stats.rank > 0
    log_probs, entropy = labelled.logprobs(stats, patched.sampled)
    values = {"log_probs": log_probs, "entropy": entropy, "is_top1": stats.correct == 1, "label_mask": mask}
    if "log_sum_sq_probs" in wanted:
        values["log_sum_sq_probs"] = (stats.nll_at_temperature[..., 0] - 2 * stats.nll).where(mask, 0.0)
    if "mean_logits" in wanted:
        values["mean_logits"] = labelled.mean_logits().to(stats.nll.dtype).where(mask, 0.0)
    return values


def verify_tokens(own: Any, ours: Any, dtype: torch.dtype) -> None:
    """Compare TRL's statistics of some tokens with the patched model's; raise ValueError if they differ."""
    missing = [name for name, value in own.items() if value is not None and getattr(ours, name, None) is None]
    if missing:
        raise ValueError(f"this trainer cannot be patched: it needs {', '.join(missing)} for every token")
    eps = torch.finfo(dtype).eps  # of the weights: log_probs are float32 for weights of any dtype
    a, b = own.log_probs.float(), ours.log_probs.float()
    tolerance = (64 if eps < 1e-4 else 4) * eps * b.abs().clamp(min=1)
    own_nats, our_nats = float(-a.sum()), float(-b.sum())
    if not bool(((a - b).abs() <= tolerance).all()):
        raise ValueError(
            f"this trainer cannot be patched: on a few tokens its own head gives {own_nats:.6f} nats, but the model's "
            f"logits give {our_nats:.6f}, for example because it omits the update that PEFT has added to the head"
        )
