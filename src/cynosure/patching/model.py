"""Run a transformers model's own forward and its own loss without materializing the logits between them."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cynosure.loss import GradTolerance, TokenStats, check_device, check_head_dtype, check_tolerance, uncompiled
from cynosure.patching.adapters import tuner
from cynosure.patching.entered import Entered
from cynosure.patching.find import find_causal_lm
from cynosure.patching.forward import Forward, FusedHead, leads_to
from cynosure.patching.heads import Deferring, gather_head, head_layers, is_fsdp, is_in_fsdp1
from cynosure.patching.inputs import Inputs, input_device
from cynosure.patching.labelled import PLAIN, Sampled, reduced
from cynosure.patching.losses import Asked
from cynosure.patching.pending import PendingLogits
from cynosure.patching.reached import reach
from cynosure.patching.verify import verify


class Patch(Entered):
    """The handle of a patched model. `undo`, or the end of its `with` block, restores the model.

    Each model has one handle: patching again returns it, and the patch stays until every entry has been left. The
    handle goes with the model when that is copied, pickled or sent to another process.

    Attributes:
        grad_tolerance: relative error that sampling may add to the gradients of the loss; 0 is exact.
        head_dtype: dtype of the head's matmul and its logits; None is the model's own.
        generator: CPU generator of the sampling; None is torch's default one. Copies of the handle have None.
    """

    def __init__(self, model: Any, example: Inputs | None = None) -> None:
        self.model, self.example = find_causal_lm(model), example
        self.probed = self.model  # the module that verification calls
        self.observer: Callable[[TokenStats], None] | None = None  # gets every token's statistics in evaluation
        self.grad_tolerance: GradTolerance = 0.0
        self.head_dtype: torch.dtype | None = None
        self.generator: torch.Generator | None = None
        self.objective = PLAIN  # the terms that training minimises in addition to the cross-entropy
        self.plain: Tensor | None = None  # only the cross-entropy of the last sum in training, without a graph
        self.made_by: list[str] = []  # operations that needed full logits in the last forward with labels
        self.obstacle: str | None = None  # why its head cannot be deferred
        self.seen: list[Asked] | None = None  # the requested losses, during verification
        self.fused_head = FusedHead()  # options of TRL's head, if a trainer has added one
        self.deferred = 0  # matmuls of the head deferred in the last forward
        self.fused = 0  # losses computed without logits
        self.warned = False
        self.paused = False  # run the model's own forward
        self.without_labels = False  # defer its logits without labels too

    @classmethod
    def on(
        cls,
        model: Any,
        example: Inputs | None = None,
        grad_tolerance: GradTolerance | None = None,
        head_dtype: torch.dtype | None = None,
    ) -> "Patch":
        """Enter the patch of a model; apply and verify it if needed. Raises as `apply` and `allow` do."""
        inner = find_causal_lm(model)
        handle: Patch = vars(inner).get("_cynosure_patch") or cls(model, example)
        check_head_dtype(head_dtype)
        if grad_tolerance is not None:
            handle.allow(grad_tolerance)
        before, handle.head_dtype = handle.head_dtype, head_dtype or handle.head_dtype
        handle.example = handle.example if example is None else example
        # FSDP may gather weights only in the wrapper's forward; PEFT may read inputs of an example in its own.
        needs_wrapper = handle.example is not None and hasattr(model, "get_base_model")
        handle.probed = model if needs_wrapper or is_fsdp(model) else inner
        entries = handle.entries
        if handle.in_place:
            try:
                verify(handle)  # PEFT may have changed the head since
            except BaseException:
                handle.head_dtype = before
                raise
        else:
            handle.undo()
            handle.apply()
        handle.entries = entries + 1
        return handle

    def allow(self, grad_tolerance: GradTolerance) -> None:
        """Set the tolerance of the gradients.

        Raises ValueError or TypeError for a bad value, NotImplementedError on a device other than a CPU.
        """
        check_device(check_tolerance(grad_tolerance, self.model.dtype), input_device(self.model))
        self.grad_tolerance = grad_tolerance

    @property
    def sampled(self) -> Sampled:
        """How the backward of a loss is sampled."""
        return Sampled(self.grad_tolerance, self.generator)

    @property
    def in_place(self) -> bool:
        """Whether this patch is applied, and nothing has replaced its forward since."""
        own = vars(self.model)
        return own.get("_cynosure_patch") is self and leads_to(own.get("forward"), self.installed)

    def apply(self) -> "Patch":
        """Apply the patch and verify it, once per model and head.

        Raises ValueError if verification fails, and leaves the model as it was.
        """
        model = self.model
        if is_patched(model):
            raise ValueError(f"this {type(model).__name__} is already patched: undo that patch first")
        if self.probed is model and is_in_fsdp1(model):
            raise ValueError(
                f"{type(model).__name__} cannot be patched: FullyShardedDataParallel gathers its weights only in "
                "the wrapper's forward: patch the wrapper, or patch the model before you wrap it"
            )
        self.own_forward = model.forward
        self.covered = vars(model).get("forward")  # set on the model itself, not on its class
        model.forward = self.installed = Forward(model)
        model._cynosure_patch = self
        try:
            verify(self)
        except BaseException:
            self.undo()
            raise
        return self

    def undo(self) -> None:
        """Restore the model at once, however often it was patched. Further calls do nothing."""
        model, self.entries = self.model, 0
        if vars(model).get("_cynosure_patch") is not self:
            return
        del model._cynosure_patch
        forward = vars(model).pop("forward", None)
        if getattr(forward, "__func__", None) is self.installed.__func__:
            forward = self.covered
        if forward is not None:  # for example Accelerate's autocast around ours, which now calls the model's own
            model.forward = forward

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"observer": None, "plain": None, "generator": None}

    def called(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the patched model."""
        if kwargs.pop("fused_lm_head", False):  # TRL's trainers ask for per-token statistics
            from cynosure.patching.trl import per_token_output  # imported here, since few need its part of transformers

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
        """Run the model's own forward with deferred logits."""
        self.made_by.clear()
        self.plain, self.deferred, fused = None, 0, self.fused
        # A new one each time: PEFT and FSDP replace layers or their weights after patching.
        with Deferring(self.model, self):
            output = self.own_forward(*args, **kwargs)
        if self.without_labels and isinstance(logits := getattr(output, "logits", None), PendingLogits):
            reach(logits)
        if self.made_by or (self.fused == fused and has_loss(output)):
            self.warn()
        return output

    def tell(self, why: str) -> None:
        """Record what needed full logits."""
        self.made_by.append(why)

    @uncompiled
    def loss(self, asked: Asked) -> Tensor:
        """Compute a loss of the model's logits without materializing them."""
        self.ready()
        if self.seen is not None:
            self.seen.append(asked)
        labelled, reduction = asked.labelled, asked.reduction
        casts = torch.is_autocast_enabled(labelled.target.device.type)  # autocast computes this loss in float32
        dtype = torch.promote_types(labelled.recipe.dtype, torch.float32) if casts else labelled.recipe.dtype
        if self.observer is not None and not torch.is_grad_enabled() and labelled.is_plain:
            stats = labelled.stats()
            self.observer(labelled.spread(stats))
            return reduced(stats, reduction).to(dtype)
        loss = labelled.loss(reduction, self.objective, self.sampled)
        if reduction == "sum":
            with torch.no_grad():
                self.plain = loss.detach() if self.objective == PLAIN else labelled.loss(reduction)
        return labelled.recipe.hooked(loss).to(dtype)

    def ready(self) -> None:
        """Prepare for a loss: count it, and gather the head's weight."""
        self.fused += 1
        gather_head(self.model)

    def why_not(self) -> str:
        """Return why the last forward needed full logits."""
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
        return "its loss is not a cross-entropy of its logits"

    def warn(self) -> None:
        """Warn once that the loss materializes full logits."""
        if not self.warned:
            warnings.warn(f"{type(self.model).__name__} is patched, but {self.why_not()}", stacklevel=4)
        self.warned = True


def has_loss(output: Any) -> bool:
    """Whether a model's output has a loss; for a tuple that is unknown."""
    return getattr(output, "loss", None) is not None


def is_patched(model: Any) -> bool:
    return "_cynosure_patch" in vars(model)
