"""`patch` and `unpatch`: the front door."""

from typing import Any

from cynosure.patching.find import find_causal_lm
from cynosure.patching.model import Patch
from cynosure.patching.trainer import TrainerPatch


def patch(target: Any, example: dict[str, Any] | None = None) -> Patch | TrainerPatch:
    """Put a language model of transformers, or a Trainer and its model, on the fused loss.

    A model, with or without an encoder, images or sound: until `undo()` or to the end of a `with` block,
    `model(..., labels=...)` works as before. Its own loss function runs, with all of its options: the same loss, the
    same gradients, auxiliary losses kept, but no logits are made. Those in the output stand for them, and are made when
    something looks at them. Without labels nothing changes. The model may be wrapped by PEFT, low-rank updates of its
    head included. Under torch.compile it works, with graph breaks around the head.

    A Trainer of transformers or SFTTrainer of TRL: its model, and evaluation by tokens, as `TrainerPatch` says.

    To patch what is patched already gives the same handle; the end of an inner `with` block leaves it patched. A
    patched model can be copied, pickled and sent to other processes, and is patched there; where cynosure is not
    installed a pickle of it cannot be read: `unpatch` it before, or save its weights alone.

    What the model does to its logits (scale, softcap, bias, padded vocabulary, another shape, fewer rows) is followed
    until they reach `F.cross_entropy`. The loss and its gradients must be shown equal on a few tokens; `example`, a
    batch with labels, is for a model whose inputs cannot be guessed. Raises ValueError, with the reason, where that
    cannot be shown; TypeError for what is neither.

    >>> import torch
    >>> from tests.tiny import tiny_model
    >>> model, ids = tiny_model(), torch.arange(12)[None]
    >>> own = model(ids, labels=ids).loss
    >>> with patch(model):
    ...     fused = model(ids, labels=ids).loss
    >>> torch.testing.assert_close(fused, own)
    """
    if hasattr(target, "evaluation_loop"):
        return TrainerPatch.on(target, example)
    return Patch.on(target, example)


def unpatch(target: Any) -> None:
    """Leave a model, or a Trainer and its model, as it was before `patch`; nothing happens where it is not patched.

    It ends a patch at once, inside of its `with` blocks too. Raises TypeError for what is neither.

    >>> from tests.tiny import tiny_model
    >>> model = tiny_model()
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
