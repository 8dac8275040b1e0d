"""A transformers model on the fused loss: its own forward and its own loss, with the logits left out between them."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cynosure.loss import TokenStats, uncompiled
from cynosure.patching.adapters import tuner
from cynosure.patching.entered import Entered
from cynosure.patching.find import find_causal_lm
from cynosure.patching.forward import Forward, leads_to
from cynosure.patching.heads import Deferring, gather_head, head_layers, is_fsdp, is_in_fsdp1
from cynosure.patching.inputs import Inputs
from cynosure.patching.labelled import PLAIN, reduced
from cynosure.patching.losses import Asked
from cynosure.patching.verify import verify


class Patch(Entered):
    """A patched model; `undo` takes it back, as does leaving it as a context manager.

    There is one for a model: patching that again gives the same, which is in place until each of them is left. It goes
    along where the model is copied, pickled or sent to another process.
    """

    def __init__(self, model: Any, example: Inputs | None = None) -> None:
        self.model, self.example = find_causal_lm(model), example
        self.probed = self.model  # what is called to verify it
        self.observer: Callable[[TokenStats], None] | None = None  # is told every token's figures in evaluation
        self.objective = PLAIN  # of training
        self.plain: Tensor | None = None  # the cross-entropy alone of the last sum in training, without a graph
        self.made_by: list[str] = []  # what has asked for full logits, in the last forward with labels
        self.obstacle: str | None = None  # what its head has against being put off
        self.seen: list[Asked] | None = None  # what losses were made of, while they are verified
        self.per_token: set[str] = set()  # fields of every token that a trainer of TRL has the model give
        self.deferred = 0  # products of the head put off in it
        self.fused = 0  # losses made without logits
        self.warned = False
        self.paused = False  # the model is as it was meanwhile
        self.without_labels = False  # its logits are put off too

    @classmethod
    def on(cls, model: Any, example: Inputs | None = None) -> "Patch":
        """The patch of a model, put in place and verified where it is not; entered once more. Errors as of `apply`."""
        inner = find_causal_lm(model)
        found: Patch = vars(inner).get("_cynosure_patch") or cls(model, example)
        found.example = found.example if example is None else example
        # FSDP may gather weights around the model, and nowhere else; PEFT takes some of an example for its layers.
        takes_part = found.example is not None and hasattr(model, "get_base_model")
        found.probed = model if takes_part or is_fsdp(model) else inner
        entries = found.entries
        if found.in_place:
            verify(found)  # PEFT may have changed the head since
        else:
            found.undo()
            found.apply()
        found.entries = entries + 1
        return found

    @property
    def in_place(self) -> bool:
        """Whether the model is patched by this, and no one has put another forward there since."""
        own = vars(self.model)
        return own.get("_cynosure_patch") is self and leads_to(own.get("forward"), self.installed)

    def apply(self) -> "Patch":
        """Put it in place and verify it, once for a model and its head.

        Raises ValueError, the model being as before, where it cannot be proved equal.
        """
        model = self.model
        if is_patched(model):
            raise ValueError(f"this {type(model).__name__} is patched already: undo that first")
        if self.probed is model and is_in_fsdp1(model):
            raise ValueError(
                f"{type(model).__name__} cannot be patched: FullyShardedDataParallel gathers its weights around it, "
                "not inside of it: patch what that has given, or the model before it is wrapped"
            )
        self.own_forward = model.forward
        self.covered = vars(model).get("forward")  # of the model itself, not of its class
        model.forward = self.installed = Forward(model)
        model._cynosure_patch = self
        try:
            verify(self)
        except BaseException:
            self.undo()
            raise
        return self

    def undo(self) -> None:
        """Leave the model as it was, whoever else has asked for the patch; once is enough."""
        model, self.entries = self.model, 0
        if vars(model).get("_cynosure_patch") is not self:
            return
        del model._cynosure_patch
        forward = vars(model).pop("forward", None)
        if getattr(forward, "__func__", None) is self.installed.__func__:
            forward = self.covered
        if forward is not None:  # as Accelerate's autocast around ours, which lets everything through now
            model.forward = forward

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"observer": None, "plain": None}

    def called(self, *args: Any, **kwargs: Any) -> Any:
        """What the patched model gives for a call."""
        if kwargs.pop("fused_lm_head", False):  # TRL's trainers ask for per-token figures
            from cynosure.patching.trl import per_token_output  # what it takes of transformers, few need

            return per_token_output(self, *args, **kwargs)
        signature = self.installed.__signature__
        given = signature.bind_partial(*args, **kwargs).arguments
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                given = given | given.get(name, {})
        if given.get("labels") is None and given.get("shift_labels") is None and not self.without_labels:
            return self.own_forward(*args, **kwargs)
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward, its logits left out."""
        self.made_by.clear()
        self.plain, self.deferred, fused = None, 0, self.fused
        # Made anew each time: PEFT and FSDP replace layers or their weights after patching.
        with Deferring(self.model, self):
            output = self.own_forward(*args, **kwargs)
        if self.made_by or (self.fused == fused and has_loss(output)):
            self.warn()
        return output

    def tell(self, why: str) -> None:
        """What has asked for full logits."""
        self.made_by.append(why)

    @uncompiled
    def loss(self, asked: Asked) -> Tensor:
        """A loss of the model's logits, without them."""
        self.ready()
        if self.seen is not None:
            self.seen.append(asked)
        labelled, reduction = asked.labelled, asked.reduction
        casts = torch.is_autocast_enabled(labelled.target.device.type)  # autocast has this loss in float32
        dtype = torch.promote_types(labelled.recipe.dtype, torch.float32) if casts else labelled.recipe.dtype
        if self.observer is not None and not torch.is_grad_enabled() and labelled.is_plain:
            stats = labelled.stats()
            self.observer(labelled.spread(stats))
            return reduced(stats, reduction).to(dtype)
        made = labelled.loss(reduction, self.objective)
        if reduction == "sum":
            with torch.no_grad():
                self.plain = made.detach() if self.objective == PLAIN else labelled.loss(reduction)
        return labelled.hooked(made).to(dtype)

    def ready(self) -> None:
        """Before a loss: count it, and see that the head's weight is there."""
        self.fused += 1
        gather_head(self.model)

    def why_not(self) -> str:
        """Why the last forward gave no loss without logits."""
        if self.obstacle is not None:
            return self.obstacle
        if self.made_by:
            method = next(filter(None, map(tuner, head_layers(self.model))), None)
            if method is None:
                return f"between its head and its loss, {self.made_by[0]} needs full logits"
            return (
                f"its head is a layer of peft.tuners.{method}, and in it or after it {self.made_by[0]} needs full "
                "logits: leave the head out of the adapter's target_modules"
            )
        return "its loss is no cross-entropy of its logits"

    def warn(self) -> None:
        """Say, once, that a loss is made of full logits."""
        if not self.warned:
            warnings.warn(f"{type(self.model).__name__} is patched, but {self.why_not()}", stacklevel=4)
        self.warned = True


def has_loss(output: Any) -> bool:
    """Whether a model gave a loss; a tuple is not known to have one."""
    return getattr(output, "loss", None) is not None


def is_patched(model: Any) -> bool:
    return "_cynosure_patch" in vars(model)
