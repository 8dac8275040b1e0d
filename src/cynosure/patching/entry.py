"""`patch` and `unpatch`: the front door."""

from typing import Any

from cynosure.patching.find import find_causal_lm
from cynosure.patching.model import Patch
from cynosure.patching.trainer import TrainerPatch


def patch(target: Any, example: dict[str, Any] | None = None) -> Patch | TrainerPatch:
    """Put a language model of transformers, or a Trainer and its model, on the fused loss.

    A model, with or without an encoder, images or sound: until `undo()` or the end of a `with` block,
    `model(..., labels=...)` works as before. Its own loss function runs with all of its options: the same loss, the
    same gradients, auxiliary losses kept, but the logits are not materialized. The output has a stand-in for them; they
    are materialized when something looks at them. Without labels nothing changes. The model may be wrapped by PEFT,
    low-rank updates of its head included. Under torch.compile it works, with graph breaks around the head.

    A Trainer of transformers or SFTTrainer of TRL: its model, and evaluation by tokens, as `TrainerPatch` says.

    Patching again gives the same handle; the end of an inner `with` block leaves the model patched. A patched model can
    be copied, pickled and sent to other processes, and is patched there. Where cynosure is not installed a pickle of it
    cannot be read: `unpatch` it before, or save its weights alone.

    What the model does to its logits (scale, softcap, bias, padded vocabulary, another shape, fewer rows) is followed
    until they reach `F.cross_entropy`. The loss and its gradients must be shown to be equal on a few tokens.

    Args:
        target: a model of transformers, or a Trainer.
        example: a batch with labels, for a model whose inputs cannot be guessed.

    Returns:
        The handle, which is also a context manager.

    Raises:
        ValueError: the loss cannot be shown to be equal; the message has the reason.
        TypeError: the target is neither a model nor a Trainer.

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
        return TrainerPatch.on(target, example)
    return Patch.on(target, example)


def unpatch(target: Any) -> None:
    """Restore a model, or a Trainer and its model, as before `patch`; nothing happens if it is not patched.

    This ends a patch at once, also inside its `with` blocks.

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
        found = vars(target).get("_cynosure_patch")
        if found is not None:
            found.undo()
        target = target.model
    try:
        model = find_causal_lm(target)
    except TypeError:
        kind = type(target).__name__
        raise TypeError(f"unpatch needs a causal language model of transformers or a Trainer, got {kind}") from None
    found = vars(model).get("_cynosure_patch")
    if found is not None:
        found.undo()
