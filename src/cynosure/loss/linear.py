"""The linear layer that turns hidden states into logits: a plain weight, or one with its own matmul.

r rows, D hidden size, V vocabulary
"""

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cynosure.loss.devices import is_asynchronous
from cynosure.loss.matmul.choice import choose_gemm
from cynosure.loss.matmul.rivals import multiplied
from cynosure.loss.tensors import is_plain, multiplies_itself


def matmul(a: Tensor, b: Tensor, out: Tensor, add: bool = False, provider: str | None = None) -> Tensor:
    """Compute out (M, N) = a (M, K) @ b (K, N), or += with `add`, with the named or else the best provider."""
    provider = provider or choose_gemm(2.0 * a.shape[0] * a.shape[1] * b.shape[1], a.dtype, a.device).provider
    if provider != "torch" and multiplied(provider, a, b, out, add):
        return out
    return torch.addmm(out, a, b, out=out) if add else torch.mm(a, b, out=out)  # addmm_ is not counted as FLOPs


def capped(z: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Scale and cap z = hidden @ weight.T + bias: softcap * tanh(scale * z / softcap), or scale * z without a cap."""
    z = z if scale == 1 else z * scale
    return z if softcap is None else torch.tanh(z / softcap) * softcap


class HeadWeights(NamedTuple):
    """The weight and bias of a head, as plain tensors."""

    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)

    @property
    def shape(self) -> torch.Size:
        """(V, D)."""
        return self.weight.shape

    def to(self, dtype: torch.dtype) -> "HeadWeights":
        """Cast both to this dtype."""
        return HeadWeights(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))

    def classes(self, at: "slice | Tensor") -> "HeadWeights":
        """Select the rows of these classes."""
        return HeadWeights(self.weight[at], None if self.bias is None else self.bias[at])

    def linear(self, hidden: Tensor, out: Tensor, provider: str | None = None) -> Tensor:
        """out (r, V) = hidden (r, D) @ weight.T + bias."""
        if self.bias is not None and is_asynchronous(hidden.device):
            return torch.addmm(self.bias, hidden, self.weight.t(), out=out)  # a GPU adds the bias inside the matmul
        if self.bias is not None:
            out.copy_(self.bias)
        return matmul(hidden, self.weight.t(), out, add=self.bias is not None, provider=provider)

    def dhidden(self, dlogits: Tensor, hidden: Tensor, out: Tensor) -> Tensor:
        """out (r, D) = dlogits (r, V) @ weight."""
        return matmul(dlogits, self.weight, out)


class OwnHead:
    """A weight with its own matmul, for example a quantized one. It is a constant, and is never split by classes.

    The logits come from its own `F.linear`, as in the model. The gradient is that of a matmul with its values, since an
    `F.linear` that rounds its input has no derivative.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None = None) -> None:
        self.weight, self.bias, self.dtype = weight, bias, dtype or weight.dtype
        self.shape = weight.shape

    def to(self, dtype: torch.dtype) -> "OwnHead":
        """Return the head with matmuls in this dtype."""
        return OwnHead(self.weight, None if self.bias is None else self.bias.to(dtype), dtype)

    def linear(self, hidden: Tensor, out: Tensor, provider: str | None = None) -> Tensor:
        """out (r, V) = hidden (r, D) @ weight.T + bias."""
        try:
            logits = F.linear(hidden, self.cast, self.bias)
        except Exception as error:
            if self.values is None:
                raise self.unusable("F.linear") from error
            logits = F.linear(hidden, self.values, self.bias)
        return out.copy_(self.checked(logits, "F.linear", out.shape))

    def dhidden(self, dlogits: Tensor, hidden: Tensor, out: Tensor) -> Tensor:
        """out (r, D) = dlogits (r, V) @ weight."""
        if self.values is not None:
            return matmul(dlogits, self.values, out)
        try:
            with torch.enable_grad():
                leaf = hidden.detach().requires_grad_()
                (dhidden,) = torch.autograd.grad(F.linear(leaf, self.cast), leaf, dlogits)
        except Exception as error:
            raise self.unusable("F.linear's gradient") from error
        return out.copy_(self.checked(dhidden, "F.linear's gradient", out.shape))

    @cached_property
    def cast(self) -> Tensor:
        """The weight in the dtype of the call."""
        return self.weight if self.weight.dtype == self.dtype else self.weight.to(self.dtype)

    @cached_property
    def values(self) -> Tensor | None:
        """The values (V, D) that the weight stands for, or None if its class cannot dequantize it."""
        if type(self.weight).dequantize is Tensor.dequantize:
            return None
        try:
            values = self.weight.dequantize().detach()  # in this order: detach() may return a plain tensor
        except Exception:
            return None
        return values.to(self.dtype) if is_plain(values) and values.shape == self.shape else None

    def checked(self, x: Tensor, what: str, shape: torch.Size) -> Tensor:
        """The result of the weight's class, if it is plain and of the right shape."""
        if not is_plain(x) or x.shape != shape:
            raise self.unusable(what)
        return x

    def unusable(self, what: str) -> NotImplementedError:
        """The error if the weight's class cannot compute `what`."""
        return NotImplementedError(
            f"weight is a {type(self.weight).__name__}, whose {what} does not return a plain tensor here: pass its "
            "values as a plain weight (weight.dequantize(), if it has that method)"
        )


def readable(weight: Tensor) -> Tensor:
    """Return a head's weight (V, D) as a tensor that torch can slice, scale and join.

    A weight with its own matmul is dequantized, or else multiplied by the identity. Raises NotImplementedError if
    neither gives a plain tensor, or if the weight requires grad.
    """
    if not multiplies_itself(weight):
        return weight
    check_frozen(weight)
    head = OwnHead(weight, None)
    if head.values is not None:
        return head.values
    with torch.no_grad():
        identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        return head.linear(identity, identity.new_empty(weight.shape[::-1])).t()


def check_frozen(weight: Tensor, of: str = "") -> None:
    """Refuse a trained weight with its own matmul: we cannot compute its gradient. Errors name `{of}weight`."""
    if torch.is_grad_enabled() and weight.requires_grad:
        raise NotImplementedError(
            f"{of}weight is a {type(weight).__name__} that requires grad, and only its class knows that gradient: "
            "freeze it (weight.requires_grad_(False)), or train a plain weight"
        )


def make_head(weight: Tensor, bias: Tensor | None) -> HeadWeights | OwnHead:
    """Build the head of a checked weight."""
    return OwnHead(weight, bias) if multiplies_itself(weight) else HeadWeights(weight, bias)
