"""The loss as nn.Module: options at construction, tensors at the call."""

from dataclasses import fields
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from cynosure.loss.backends.registry import choose_backend
from cynosure.loss.jobs import check_head_dtype
from cynosure.loss.operations import cross_entropy, linear_cross_entropy
from cynosure.loss.options import ReduceOptions, RowOptions, check_chunk_tokens
from cynosure.loss.sampling.options import check_tolerance
from cynosure.loss.targets import TargetLike
from cynosure.loss.transforms import refuse_script

_NUMBERS = ("ignore_index", "reduction", "label_smoothing", "z_loss", "softcap", "scale", "shift", "backend")


class _Loss(nn.Module):
    """Base class that keeps the options. Class weights are a buffer, so that they move with the module."""

    options_allowed: tuple[str, ...] = _NUMBERS
    class_weight: Tensor | None

    def __init__(self, *, class_weight: Tensor | None = None, **options: Any) -> None:
        super().__init__()
        unknown = sorted(set(options) - set(self.options_allowed))
        if unknown:
            allowed = ", ".join((*self.options_allowed, "class_weight"))
            raise TypeError(f"{type(self).__name__} has no option {unknown[0]!r}: expected one of {allowed}")
        for record in (RowOptions, ReduceOptions):  # raise now, not at the first call
            record(**{field.name: options[field.name] for field in fields(record) if field.name in options})
        check_chunk_tokens(options.get("chunk_tokens"))
        check_head_dtype(options.get("head_dtype"))
        choose_backend(options.get("backend"))
        check_tolerance(options.get("grad_tolerance", 0.0), torch.float32)
        self.register_buffer("class_weight", class_weight)
        self.options = options

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_script(type(self).__name__)()

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class LinearCrossEntropyLoss(_Loss):
    """`linear_cross_entropy` as a module. It owns no weight: the head's weight is an argument of the call.

    Args:
        class_weight: (V,) weight of each class, a buffer of the module.
        options: the other options of `linear_cross_entropy` that are not tensors.

    Raises:
        TypeError: an option is unknown.
        ValueError: an option has an invalid value.

    Example:
        >>> import torch
        >>> criterion = LinearCrossEntropyLoss(label_smoothing=0.1, shift=1)
        >>> head = torch.nn.Linear(8, 100)
        >>> loss = criterion(torch.randn(2, 5, 8), head.weight, torch.randint(100, (2, 5)), bias=head.bias)
        >>> loss.shape
        torch.Size([])
    """

    options_allowed = (*_NUMBERS, "chunk_tokens", "grad_tolerance", "shift_weight", "head_dtype")

    def forward(
        self,
        hidden: Tensor,
        weight: Tensor,
        target: TargetLike,
        *,
        bias: Tensor | None = None,
        token_weight: Tensor | None = None,
        normalizer: float | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Loss of hidden (..., D) under the head weight (V, D); see `linear_cross_entropy`."""
        return linear_cross_entropy(
            hidden, weight, target, bias=bias, token_weight=token_weight, normalizer=normalizer,
            class_weight=self.class_weight, generator=generator, **self.options,
        )  # fmt: skip


class CrossEntropyLoss(_Loss):
    """`cross_entropy` as a module, for existing logits (..., V).

    Args:
        class_weight: (V,) weight of each class, a buffer of the module.
        options: the other options of `cross_entropy` that are not tensors.

    Raises:
        TypeError: an option is unknown.
        ValueError: an option has an invalid value.

    Example:
        >>> import torch
        >>> round(CrossEntropyLoss(reduction="sum")(torch.zeros(3, 2), torch.tensor([0, 1, -100])).item(), 4)  # 2 ln 2
        1.3863
    """

    def forward(
        self,
        logits: Tensor,
        target: TargetLike,
        *,
        token_weight: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        """Loss of logits (..., V); see `cross_entropy`."""
        return cross_entropy(
            logits,
            target,
            token_weight=token_weight,
            normalizer=normalizer,
            class_weight=self.class_weight,
            **self.options,
        )
