"""Losses and gradients of a model before and after it is patched."""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.census.calls import Call


class Tolerance(NamedTuple):
    """The most that losses and gradients may differ by, relative; `whole`: all gradients as one vector, not each."""

    loss: float
    gradient: float
    whole: bool = False


FLOAT32 = Tolerance(loss=1e-5, gradient=1e-4)
BFLOAT16 = Tolerance(loss=2e-2, gradient=8e-2, whole=True)


class Outcome(NamedTuple):
    """What one call came to: an error, or a loss and gradients by parameter; patched, what asked for full logits."""

    error: str = ""
    loss: float = 0.0
    gradients: dict[str, Tensor | None] | None = None
    no_backward: str = ""
    logits_made: str = ""


class Comparison(NamedTuple):
    """One call unpatched and patched. `verdict`: "equal", "own error" (the model itself fails), or what is wrong."""

    verdict: str
    loss_difference: float = 0.0
    gradient_difference: float = 0.0


def text_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def seeded(model: Any, inputs: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return model(**copied(inputs))


def copied(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs that a model may change in place."""
    return {name: x.clone() if isinstance(x, Tensor) else x for name, x in inputs.items()}


def outcomes(model: Any, calls: dict[str, Call], patch: Any = None) -> dict[str, Outcome]:
    """What each call comes to; afterwards the model is in evaluation mode, without gradients, its buffers as before."""
    found = {}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]  # batch norms change theirs
    for name, call in calls.items():
        model.train(call.train)
        model.zero_grad(set_to_none=True)
        found[name] = outcome(model, call.inputs, patch)
        for buffer, before in buffers:
            buffer.copy_(before)
    model.eval()
    model.zero_grad(set_to_none=True)
    return found


def outcome(model: Any, inputs: dict[str, Any], patch: Any) -> Outcome:
    fused = 0
    if patch is not None:
        fused, patch.warned = patch.fused, False
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            output = seeded(model, inputs)
            loss = output[0] if isinstance(output, tuple) else output.loss
            value = float(loss.detach())
        except Exception as error:
            return Outcome(error=text_of(error))
        failed = ""
        try:
            loss.backward()
        except Exception as error:
            failed = text_of(error)
    made = "" if patch is None else logits_made(patch, fused, [str(w.message) for w in said])
    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    return Outcome("", value, gradients, failed, made)


def logits_made(patch: Any, fused: int, said: list[str]) -> str:
    """What asked for full logits in the last forward; "" for nothing."""
    if patch.made_by:
        return str(patch.made_by[0])
    warned = [message for message in said if "full logits" in message]
    if warned:
        return warned[0]
    return "" if patch.fused > fused else "no fused loss"


def compared(own: Outcome, ours: Outcome, tolerance: Tolerance) -> Comparison:
    if own.error:
        return Comparison("own error")
    if ours.error:
        return Comparison(f"patched it fails: {ours.error}")
    if bool(own.no_backward) != bool(ours.no_backward):
        return Comparison(f"patched, its backward differs: {own.no_backward or ours.no_backward}")
    if ours.logits_made:
        return Comparison(f"full logits are made: {ours.logits_made}")
    loss = abs(ours.loss - own.loss) / max(abs(own.loss), 1e-30)
    assert own.gradients is not None
    assert ours.gradients is not None
    gradient, where = difference(own.gradients, ours.gradients, whole=tolerance.whole)
    if not loss <= tolerance.loss:
        return Comparison(f"its loss is {ours.loss:.6f} instead of {own.loss:.6f}", loss, gradient)
    if not gradient <= tolerance.gradient:
        return Comparison(f"the gradient of {where} is off by {gradient:.1e}", loss, gradient)
    return Comparison("equal", loss, gradient)


def without_kernels(found: Outcome, model: Any) -> Outcome:
    """Without the gradients of convolutions' kernels: in bfloat16 on a CPU, PyTorch's differ from run to run."""
    assert found.gradients is not None
    kernels = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.modules.conv._ConvNd)
    }
    return found._replace(gradients={name: g for name, g in found.gradients.items() if name not in kernels})


def as_exact(own: Outcome, ours: Outcome, exact: Outcome) -> bool:
    """Whether a patched call is as near to float64 as the model's own: at most twice as far, and a millionth."""
    if own.gradients is None or ours.gradients is None or exact.gradients is None:
        return False
    losses = abs(ours.loss - exact.loss) <= 2 * abs(own.loss - exact.loss) + 1e-6 * abs(exact.loss)
    errors = [difference(exact.gradients, found.gradients, whole=False)[0] for found in (own, ours)]
    return losses and errors[1] <= 2 * errors[0] + 1e-6


def difference(own: dict[str, Tensor | None], ours: dict[str, Tensor | None], *, whole: bool) -> tuple[float, str]:
    """The largest relative difference of a gradient and its parameter; infinite where one side has none."""
    norms = {name: 0.0 if g is None else g.double().norm().item() for name, g in own.items()}
    total = max(sum(norm**2 for norm in norms.values()) ** 0.5, 1e-30)
    squares, worst, where = 0.0, 0.0, ""
    for name, a in own.items():
        b = ours[name]
        if (a is None) != (b is None):
            return float("inf"), name
        if a is None or b is None:
            continue
        apart = (b.double() - a.double()).norm().item()
        squares += apart**2
        relative = apart / max(norms[name], 1e-3 * total, 1e-30)
        if not relative <= worst:
            worst, where = relative, name
    return (squares**0.5 / total, "all parameters") if whole else (worst, where)
