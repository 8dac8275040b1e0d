"""`patch`: the front door."""

from typing import Any

from cynosure.patching.model import Patch
from cynosure.patching.trainer import TrainerPatch


def patch(target: Any, example: dict[str, Any] | None = None) -> Patch | TrainerPatch:
    """Put a language model of transformers, or a Trainer and its model, on the fused loss.

    A model, with or without an encoder, images or sound: until `undo()` or to the end of a `with` block,
    `model(..., labels=...)` works as before. Its own loss function runs, with all of its options: the same loss, the
    same gradients, auxiliary losses kept, but no logits are made. Those in the output stand for them, and are made when
    something looks at them. Without labels nothing changes. The model may be wrapped by PEFT, low-rank updates of its
    head included. Under torch.compile it works, with graph breaks around the head.

    A Trainer of transformers or SFTTrainer of TRL: its model, and evaluation by tokens, as `TrainerPatch` says. Patch
    SFTTrainer itself, not its model before: it puts a loss of its own on the model.

    What the model does to its logits (scale, softcap, bias, padded vocabulary, another shape, fewer rows) is followed
    until they reach `F.cross_entropy`. The loss must be shown equal on a few tokens; `example`, a batch with labels, is
    for a model whose inputs cannot be guessed. Raises ValueError, with the reason, where it cannot be shown; TypeError
    for what is neither.

    >>> import torch
    >>> from tests.lm.conftest import tiny_model
    >>> model, ids = tiny_model(), torch.arange(12)[None]
    >>> own = model(ids, labels=ids).loss
    >>> with patch(model):
    ...     fused = model(ids, labels=ids).loss
    >>> torch.testing.assert_close(fused, own)
    """
    if hasattr(target, "evaluation_loop"):
        return TrainerPatch(target).apply()
    return Patch(target, example).apply()
